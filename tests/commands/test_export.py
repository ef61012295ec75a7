"""`python -m finetune export`: the model as a file, compared with the model."""

import json

import numpy as np
import pytest
from support import CLASSES, write_model


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("state-dict", ()),
        ("state-dict", ("--half",)),
        pytest.param("torch-export", (), marks=pytest.mark.slow),
        pytest.param("onnx", ("--half",), marks=pytest.mark.slow),
    ],
)
def test_an_export_prints_its_difference_from_the_model(trained, call, tmp_path, kind, flags):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    path = tmp_path / "model.bin"
    code, out, err = call("export", trained / "fast", "--format", kind, "--output", path, *flags)
    assert code == 0, err
    assert {file.name for file in tmp_path.iterdir()} == {"model.bin", "model.bin.json"}
    assert float(out.split("in a ")[1].split(": ")[1].split(",")[0]) < (1e-2 if flags else 1e-4)
    assert "8 validation images" in out
    about = json.loads((tmp_path / "model.bin.json").read_text())
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
    monkeypatch.setattr("finetune.inference.export.LIMIT", -1.0)
    code, out, err = call("export", trained / "fast", "--format", "state-dict", "--output", tmp_path / "m.pth")
    assert (code, out) == (2, "")
    assert "differs from the model by" in err
    assert list(tmp_path.iterdir()) == []
    code, _, _ = call("export", trained / "fast", "--format", "state-dict")
    assert code == 2
    assert not (trained / "fast" / "export").exists()
