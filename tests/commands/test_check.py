"""`check`: text, JSON, page and list; what the list proposes is what training then leaves out."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support import write_images

from finetune import __main__ as program
from finetune.audit import label_errors
from finetune.audit.label_errors import LabelError
from finetune.config.settings import Images
from finetune.data import readers
from finetune.runtime.entry import exit_code


@pytest.fixture
def folder(tmp_path):
    """Two classes of six, with a copy, a conflict, a bad file and a stray one."""
    data = tmp_path / "data"
    write_images(data, 6, ("a <b>", "b"))
    shutil.copy(data / "a <b>" / "00.jpg", data / "a <b>" / "copy.jpg")
    shutil.copy(data / "a <b>" / "01.jpg", data / "b" / "conflict.jpg")
    (data / "b" / "bad.jpg").write_bytes(b"no image")
    (data / "notes.txt").write_text("a note")
    return data


def check(*words, code=0):
    assert exit_code(program.main, ["check", *map(str, words)]) == code


def test_text_names_every_finding_and_touches_nothing(folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    check(folder)
    shown = capsys.readouterr().out
    for words in ("12 images", "Files that do not decode: 1", "b/bad.jpg: cannot identify", "notes.txt is not read"):
        assert words in shown
    assert "a <b>/00.jpg" in shown
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_json_has_the_counts_and_the_images_of_each_finding(folder, capsys):
    check(folder, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["classes"] == ["a <b>", "b"]
    assert {name: sum(counts) for name, counts in found["counts"].items()} == {"train": 12, "val": 2}
    kinds = {one["kind"]: one["images"] for one in found["findings"]}
    assert kinds["undecodable"] == ["b/bad.jpg"]
    pairs = [set(one["images"]) for one in found["findings"] if one["kind"] in ("leak", "conflict", "duplicate")]
    assert {"a <b>/00.jpg", "a <b>/copy.jpg"} in pairs
    assert {"a <b>/01.jpg", "b/conflict.jpg"} in pairs


def test_the_page_holds_its_pictures_and_escapes_names(folder, tmp_path):
    check(folder, "--html", tmp_path / "audit.html")
    page = (tmp_path / "audit.html").read_text()
    assert "a &lt;b&gt;" in page
    assert "<b>" not in page
    assert page.count('<img src="data:image/webp;base64,') >= 4
    assert "http" not in page.replace("http-equiv", "")


def test_training_takes_the_list_that_is_proposed(folder, tmp_path, capsys):
    check(folder, "--fix-list", tmp_path / "fixes.csv")
    rows = {row["path"]: row["action"] for row in csv.DictReader((tmp_path / "fixes.csv").open())}
    assert rows["b/bad.jpg"] == "remove"
    assert len(rows) == 4, "one of a copy, both of a conflict, the bad file"
    assert set(rows.values()) == {"remove"}
    found = readers.read(Images(data=str(folder), exclude=tmp_path / "fixes.csv"), 3, seed=0)
    assert found.excluded == 4
    capsys.readouterr()
    check(folder, "--exclude", tmp_path / "fixes.csv")
    assert "Copies" not in capsys.readouterr().out


def test_a_runs_held_out_predictions_name_likely_label_errors(trained, image_folder, tmp_path, capsys):
    pytest.importorskip("cleanlab")
    check(trained / "fast", "--fix-list", tmp_path / "fixes.csv", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["data"].startswith(str(image_folder))
    labels = [one["images"] for one in found["findings"] if one["kind"] == "label"]
    rows = [row for row in csv.DictReader((tmp_path / "fixes.csv").open()) if row["action"] == "relabel"]
    assert [[row["path"]] for row in rows] == labels
    assert all(row["path"].startswith("val/") and row["label"] != row["new_label"] for row in rows)


def test_a_label_error_that_a_list_removed_is_named_no_more(trained, image_folder, tmp_path, capsys, monkeypatch):
    first = sorted((image_folder / "val").rglob("*.jpg"))[0]
    found = LabelError(str(first), first.parent.name, "another", 0.1)
    monkeypatch.setattr(label_errors, "find", lambda *_: [found])
    check(trained / "fast", "--json")
    assert "label" in {one["kind"] for one in json.loads(capsys.readouterr().out)["findings"]}
    (tmp_path / "fixes.csv").write_text(f"path,action\n{first},remove\n")
    check(trained / "fast", "--exclude", tmp_path / "fixes.csv", "--json")
    assert "label" not in {one["kind"] for one in json.loads(capsys.readouterr().out)["findings"]}


def test_a_list_of_arrays_is_made_of_all_of_them_only(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 40, 40), np.uint8)
    arrays = {"x_train": pixels, "y_train": np.arange(8) % 2, "x_val": pixels[:4], "y_val": np.arange(4) % 2}
    np.savez(tmp_path / "a.npz", **arrays)
    check(tmp_path / "a.npz", "--fix-list", tmp_path / "fixes.csv")
    rows = list(csv.DictReader((tmp_path / "fixes.csv").open()))
    assert [row["path"] for row in rows] == [f"train/#{k}" for k in range(4)], "each has a copy in val"
    again = (tmp_path / "a.npz", "--exclude", tmp_path / "fixes.csv")
    check(*again, "--fix-list", tmp_path / "more.csv", code=2)
    assert "named by their number" in capsys.readouterr().err
    check(*again)
    assert "4 images" in capsys.readouterr().out


@pytest.mark.slow
def test_the_built_in_images_can_be_checked(capsys):
    check("starter")
    assert "360 images, 36 to 36 of a class" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "--data nowhere does not exist"),
        (["{folder}", "--val-fraction", "1"], "--val-fraction 1.0: must be"),
        (["{folder}", "--html", "{folder}/notes.txt"], "exists already"),
        (["{folder}", "--exclude", "{folder}/none.csv"], "none.csv: there is no such file"),
    ],
)
def test_a_mistake_is_named(folder, capsys, words, message):
    check(*(word.format(folder=folder) for word in words), code=2)
    assert message in capsys.readouterr().err


def test_an_image_that_is_gone_costs_its_thumbnail_alone(folder, tmp_path, monkeypatch):
    def gone(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Image, "open", gone)
    from finetune.audit import collection, findings
    from finetune.reporting import audit_page

    monkeypatch.undo()
    imageset = readers.read(Images(data=str(folder), skip_bad_images=True), 3, seed=0)
    data = collection.collect(imageset, folder)
    found = findings.find(data)
    (folder / "a <b>" / "copy.jpg").unlink()
    page = audit_page.render("data", data, findings.summary(data), found)
    assert page.count("<img") == 3
