"""`python -m finetune export`: the model as a file, compared with the model."""

import json

import numpy as np
import pytest
from support import CLASSES, write_images, write_model

from finetune.inference.export_forms import PACKAGES, SUFFIXES, files_of


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("state-dict", ()),
        ("state-dict", ("--half",)),
        pytest.param("torch-export", (), marks=pytest.mark.slow),
        pytest.param("onnx", ("--half",), marks=pytest.mark.slow),
        pytest.param("openvino", (), marks=pytest.mark.slow),
        pytest.param("executorch", (), marks=pytest.mark.slow),
    ],
)
def test_an_export_prints_its_difference_from_the_model(trained, call, tmp_path, kind, flags):
    for package in PACKAGES.get(kind, ()):
        pytest.importorskip(package)
    path = tmp_path / f"model{SUFFIXES[kind]}"
    code, out, err = call("export", trained / "fast", "--format", kind, "--output", path, *flags)
    assert code == 0, err
    assert {*tmp_path.iterdir()} == {*files_of(path)}
    assert float(out.split("in a ")[1].split(": ")[1].split(",")[0]) < (1e-2 if flags else 1e-4)
    assert "8 validation images" in out
    about = json.loads(files_of(path)[-1].read_text())
    assert about["classes"] == list(CLASSES)
    assert about["preprocess"]["crop"] == 32
    assert about["precision"] == ("float16" if flags else "float32")
    code, _, err = call("export", trained / "fast", "--format", kind, "--output", path)
    assert code == 2
    assert "exists already" in err


def test_onnx_takes_any_batch_and_holds_its_classes(call, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    write_model(tmp_path / "model", model="squeezenet1_0")
    code, out, err = call("export", tmp_path, "--format", "onnx", "--output", tmp_path / "m.onnx")
    assert code == 0, err
    assert "opset 18" in out
    assert "built-in images" in out, "without its run, the model has no validation images"
    proto = onnx.load(tmp_path / "m.onnx")
    assert [entry.version for entry in proto.opset_import if not entry.domain] == [18]
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for count in (1, 3, 7):
        assert session.run(None, {"images": np.zeros((count, 3, 32, 32), np.float32)})[0].shape == (count, 3)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["a", "b", "c"]


def test_an_export_that_differs_too_much_is_an_error_and_leaves_no_file(trained, call, tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.inference.exports.comparison.LIMIT", -1.0)
    code, out, err = call("export", trained / "fast", "--format", "state-dict", "--output", tmp_path / "m.pth")
    assert (code, out) == (2, "")
    assert "differs from the model by" in err
    assert list(tmp_path.iterdir()) == []
    code, _, _ = call("export", trained / "fast", "--format", "state-dict")
    assert code == 2
    assert not (trained / "fast" / "export").exists()


# ---- options ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--format", "onnx", "--int8", "--half"), "choose one"),
        (("--format", "openvino", "--int8"), "--int8 is for --format onnx"),
        (("--format", "executorch", "--half"), "--half is for the other formats"),
        (("--format", "onnx", "--int8", "--opset", "12"), "--int8 needs 13 or more"),
        (("--format", "openvino", "--output", "model"), "name an .xml file"),
        (("--format", "onnx", "--int8", "--calibration-images", "0"), "at least 1"),
        (("--format", "onnx", "--int8", "--tolerance", "nan"), "at least 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(trained, call, flags, problem):
    code, _, err = call("export", trained / "fast", *flags)
    assert code == 2
    assert problem in err


def test_a_format_names_the_packages_that_it_needs(trained, call, monkeypatch):
    monkeypatch.setitem(PACKAGES, "openvino", ("no_such_package",))
    code, _, err = call("export", trained / "fast", "--format", "openvino")
    assert code == 2
    assert "--format openvino needs packages that are not installed: pip install no_such_package" in err


@pytest.mark.slow
def test_a_network_that_executorch_can_only_hold_at_one_batch_size_is_refused(trained, call, tmp_path, monkeypatch):
    for package in PACKAGES["executorch"]:
        pytest.importorskip(package)
    monkeypatch.setattr("finetune.inference.exports.executorch.SPLITS", {})
    code, _, err = call("export", trained / "fast", "--format", "executorch", "--output", tmp_path / "m.pte")
    assert code == 2
    assert "would take 2 images at a time and no other number" in " ".join(err.split())
    assert not any(tmp_path.iterdir())


def test_int8_asks_for_images_where_the_runs_are_gone(call, tmp_path, monkeypatch):
    monkeypatch.setitem(PACKAGES, "onnx", ())
    write_model(tmp_path / "model")
    code, _, err = call("export", tmp_path, "--format", "onnx", "--int8")
    assert code == 2
    assert "--images FOLDER" in err
    assert {file.name for file in tmp_path.iterdir()} == {"model"}


@pytest.mark.slow
def test_int8_prints_both_accuracies_and_a_loss_beyond_the_tolerance_leaves_no_file(
    trained, call, tmp_path, monkeypatch
):
    for package in PACKAGES["onnx"]:
        pytest.importorskip(package)
    flags = (trained / "fast", "--format", "onnx", "--int8", "--calibration-images", "12")
    path = tmp_path / "m.onnx"
    code, out, err = call("export", *flags, "--output", path, "--tolerance", "100")
    assert code == 0, err
    assert "Calibrated on 12 training images. On 9 validation images: accuracy 0." in out
    about = json.loads(files_of(path)[-1].read_text())
    assert (about["precision"], about["calibrated_on"]) == ("int8", 12)

    write_images(tmp_path / "images", 2)
    code, out, err = call("export", *flags, "--output", tmp_path / "n.onnx", "--images", tmp_path / "images")
    assert code in (0, 2)
    assert "Calibrated on 3 images. On 3 images: accuracy" in out or "of accuracy on 3 images" in err

    monkeypatch.setattr("finetune.inference.exports.comparison.Agreement.lost", 3.0)
    code, _, err = call("export", *flags)
    assert code == 2
    assert "differs by 3.0 points of accuracy on 9 validation images (at most --tolerance 2)" in err
    assert not (trained / "fast" / "export").exists()
