"""What an export cannot do is said, with the part that is in the way."""

import json

import numpy as np
import pytest
import torch
from conftest import CLASSES
from test_artifact import write
from torch import nn

from finetune import artifact, export
from finetune.errors import UserError


@pytest.mark.parametrize(
    "settings",
    [
        {"head": "mlp", "hidden": (8,)},
        {"in_channels": 1},
        {"in_channels": 5},
        {"model": "squeezenet1_0", "image_size": 64},
        {"model": "vit_b_32", "image_size": 64},
    ],
)
def test_a_state_dict_loads_into_torchvisions_own_model(tmp_path, settings):
    write(tmp_path / "model", **settings)
    opened = artifact.load(tmp_path)
    x = torch.randn(3, settings.get("in_channels", 3), opened.preprocess.crop, opened.preprocess.crop)
    if settings.get("head") == "mlp":  # more than one layer: what torchvision's own model has no place for
        with pytest.raises(UserError, match="the mlp head is more than a last layer"):
            export.write(opened, "state-dict", tmp_path / "m.pth", x, False, 18)
        assert not (tmp_path / "m.pth").exists()
        return
    assert export.write(opened, "state-dict", tmp_path / "m.pth", x, False, 18) < 1e-4
    assert all(isinstance(value, torch.Tensor) for value in torch.load(tmp_path / "m.pth", weights_only=True).values())


def test_a_rich_head_is_named_and_another_format_takes_it(tmp_path):
    write(tmp_path / "model", head="concat_pool", hidden=(8,))
    opened = artifact.load(tmp_path)
    x = torch.randn(3, 3, 32, 32)
    with pytest.raises(UserError, match=r"the concat_pool head is more than a last layer.*torch-export or onnx"):
        export.write(opened, "state-dict", tmp_path / "m.pth", x, False, 18)
    assert export.write(opened, "torch-export", tmp_path / "m.pt2", x, False, 18) < 1e-4
    assert torch.export.load(tmp_path / "m.pt2").module()(x).shape == (3, 3)


def test_the_part_that_cannot_be_exported_is_named():
    class Odd(nn.Module):
        def forward(self, x):
            return x if x.sum().item() > 0 else -x

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), Odd()), nn.Flatten())
    assert export.culprit(model, (torch.randn(2, 3, 4, 4),)) == "1.1 (Odd)"
    assert export.culprit(nn.Sequential(nn.ReLU()), (torch.randn(2, 3),)) == ""


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("state-dict", ()),
        ("state-dict", ("--half",)),
        pytest.param("torch-export", (), marks=pytest.mark.slow),
        pytest.param("onnx", ("--half",), marks=pytest.mark.slow),
    ],
)
def test_an_export_is_checked_and_says_how_far_it_is(trained, call, tmp_path, kind, flags):
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
    write(tmp_path / "model", model="squeezenet1_0")
    code, out, err = call("export", tmp_path, "--format", "onnx", "--output", tmp_path / "m.onnx")
    assert code == 0, err
    assert "opset 18" in out
    assert "drawn images" in out, "this model has no run beside it, so no images of its own"
    held = onnx.load(tmp_path / "m.onnx")
    assert [entry.version for entry in held.opset_import if not entry.domain] == [18]
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for count in (1, 3, 7):
        assert session.run(None, {"images": np.zeros((count, 3, 32, 32), np.float32)})[0].shape == (count, 3)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["a", "b", "c"]


def test_an_export_that_is_too_far_off_is_refused_and_leaves_nothing(trained, call, tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.export.LIMIT", -1.0)
    code, out, err = call("export", trained / "fast", "--format", "state-dict", "--output", tmp_path / "m.pth")
    assert (code, out) == (2, "")
    assert "differs from the model by" in err
    assert list(tmp_path.iterdir()) == []
    code, _, _ = call("export", trained / "fast", "--format", "state-dict")
    assert code == 2
    assert not (trained / "fast" / "export").exists()
