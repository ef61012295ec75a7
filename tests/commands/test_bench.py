"""`python -m finetune bench`: speed, size and accuracy of each form in one table."""

import json
import os
import shutil

import pytest
from support import write_images, write_model

from finetune.commands import bench
from finetune.inference.export_forms import PACKAGES, Form
from finetune.models import model_folder

QUICK = ("--turns", "2", "--batch-sizes", "1", "3")


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    monkeypatch.setattr("finetune.inference.speed.TURN", 0.0)


@pytest.fixture
def quick_form(monkeypatch):
    """A state dict in the place of a torch.export program, which takes many times as long to make."""
    monkeypatch.setitem(bench.FORMS, "torch-export", Form("state-dict"))


@pytest.fixture
def nothing_installed(monkeypatch):
    for name in PACKAGES:
        monkeypatch.setitem(PACKAGES, name, ("no_such_package",))


@pytest.mark.slow
def test_the_table_has_a_row_per_form_and_names_what_is_not_installed(trained, call, quick_form, nothing_installed):
    code, out, err = call("bench", trained / "fast", *QUICK)
    assert code == 0, err
    accuracy = json.loads((trained / "fast" / "summary.json").read_text())["best_val_accuracy"]
    rows = [line.split() for line in out.splitlines()]
    (model,) = [row for row in rows if row[:1] == ["model"]]
    (exported,) = [row for row in rows if row[:1] == ["torch-export"]]
    assert len(model) == len(exported) == 10
    assert model[2:4] == [f"{accuracy:.4f}", "100.0%"]
    assert exported[2:4] == model[2:4]
    assert "on 9 validation images" in out
    for name in ("onnx", "onnx-int8", "openvino", "executorch"):
        assert f"{name} is not measured. Its packages are not installed: pip install no_such_package" in out
    assert not (trained / "fast" / "export").exists()


def test_without_images_it_tells_speed_only(call, tmp_path, quick_form):
    write_model(tmp_path / "model")
    flags = ("--formats", "torch-export", "--batch-sizes", "2", "--turns", "2")
    code, out, err = call("bench", tmp_path, *flags, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["images"] is None
    assert list(found["forms"]) == ["model", "torch-export"]
    for form in found["forms"].values():
        assert "accuracy" not in form
        assert form["bytes"] > 1e6
        times = form["milliseconds_per_image"]["2"]
        assert 0 < times["low"] <= times["median"] <= times["high"]
    write_images(tmp_path / "images", 2, classes=("a", "b", "c"))
    code, out, err = call("bench", tmp_path, *flags, "--images", tmp_path / "images")
    assert code == 0, err
    assert "on 3 images" in out


def test_an_export_of_the_run_is_used_unless_it_is_older_or_of_another_precision(trained, call, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained / "fast", run)
    form = Form("state-dict")
    assert call("export", run, "--format", "state-dict")[0] == 0
    path, opened = run / "export" / form.file_name, model_folder.load(run)
    assert bench.is_current(path, form, opened)
    assert not bench.is_current(path, Form("state-dict", "float16"), opened)
    os.utime(path, (0, 0))
    assert not bench.is_current(path, form, opened)
    assert not bench.is_current(path.with_name("other.pth"), form, opened)


def test_wrong_numbers_are_refused(trained, call):
    for flags in (("--batch-sizes", "0"), ("--turns", "1")):
        code, _, err = call("bench", trained / "fast", *flags)
        assert code == 2
        assert f"{flags[0]} {flags[1]}: must be a" in err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch-export", "onnx", "onnx-int8", "openvino", "executorch"])
def test_every_form_is_measured(trained, call, name):
    for package in PACKAGES.get(bench.FORMS[name].format, ()):
        pytest.importorskip(package)
    code, out, err = call("bench", trained / "fast", "--formats", name, *QUICK, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["not_measured"] == {}
    assert found["forms"][name]["equal"] >= (0.5 if name == "onnx-int8" else 1.0)
    assert found["forms"][name]["images"] == 9
