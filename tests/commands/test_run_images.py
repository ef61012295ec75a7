"""Commands read a run's own images, wherever they are called, and say so where these are gone or others by now."""

import json
import shutil

import pytest


@pytest.fixture
def run(train, image_folder, tmp_path):
    """A run that was given its images by a relative path."""
    shutil.copytree(image_folder, tmp_path / "photos")
    code, output = train("--recipe", "finetune", "--epochs", "1", data="photos")
    assert code == 0
    return output


def test_in_another_folder_it_is_not_other_images_of_the_same_name(run, call, tmp_path, image_folder, monkeypatch):
    shutil.copytree(image_folder / "train", tmp_path / "elsewhere" / "photos")
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, _ = call("evaluate", run, "--json")
    assert code == 0
    assert json.loads(out)["data"] == str(tmp_path / "photos")
    assert json.loads(out)["images"] == 9


@pytest.mark.slow
def test_images_that_were_moved_can_be_named(run, call, tmp_path):
    (tmp_path / "photos").rename(tmp_path / "moved")
    code, _, said = call("evaluate", run)
    assert code == 2
    assert f"the run's images are gone: there is no {tmp_path / 'photos'}. Name the images" in " ".join(said.split())
    code, out, _ = call("plot", run)
    assert code == 0
    assert "Only the charts are drawn: the run's images are gone" in " ".join(out.split())
    assert not (run / "plots" / "predictions.png").exists()
    assert "Only the charts" not in call("plot", run, "--data", tmp_path / "moved")[1]
    assert (run / "plots" / "predictions.png").exists()
    assert "no pictures" in call("report", run)[1]
    assert "no pictures" not in call("report", run, "--data", tmp_path / "moved")[1]


def test_images_that_have_changed_are_not_taken_for_the_runs(run, call, tmp_path):
    assert call("plot", run)[0] == 0
    before = (run / "plots" / "predictions.png").read_bytes()
    min((tmp_path / "photos" / "val").rglob("*.jpg")).unlink()
    code, _, said = call("evaluate", run)
    assert code == 2
    assert "have changed after the training: their names, number, sizes or classes. Name the images" in said
    assert json.loads(call("evaluate", run, "--data", tmp_path / "photos", "--json")[1])["images"] == 8
    code, out, _ = call("plot", run)
    assert code == 0
    assert "Only the charts are drawn: the images of" in " ".join(out.split())
    assert (run / "plots" / "predictions.png").read_bytes() == before
