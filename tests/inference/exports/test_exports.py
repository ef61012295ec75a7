"""Exports give the model's logits; an error names the module that cannot be exported."""

import pytest
import torch
from support import write_model
from torch import nn

from finetune.errors import UserError
from finetune.inference import exports
from finetune.inference.export_forms import PACKAGES, Form
from finetune.inference.exports import comparison, tracing
from finetune.models import model_folder


def export(folder, path, form=None, **settings):
    """Write a random network as a file; its inputs and the largest difference from the model."""
    form = form or Form("state-dict")
    write_model(folder / "model", **settings)
    opened = model_folder.load(folder)
    x = torch.randn(3, settings.get("in_channels", 3), opened.preprocess.crop, opened.preprocess.crop)
    return exports.write(opened, form, path, comparison.same_logits(opened, form, x)), x


@pytest.mark.parametrize(
    "settings",
    [
        {"in_channels": 1},
        {"in_channels": 5},
        {"model": "squeezenet1_0", "image_size": 64},
        pytest.param({"model": "vit_b_32", "image_size": 64}, marks=pytest.mark.slow),
    ],
)
def test_a_state_dict_loads_into_torchvisions_own_model(tmp_path, settings):
    difference, _ = export(tmp_path, tmp_path / "m.pth", **settings)
    assert difference < 1e-4
    assert all(isinstance(value, torch.Tensor) for value in torch.load(tmp_path / "m.pth", weights_only=True).values())


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"head": "mlp", "hidden": (8,)}, {"head": "concat_pool", "hidden": (8,)}])
def test_a_rich_head_is_named_and_another_format_takes_it(tmp_path, settings):
    with pytest.raises(
        UserError, match=rf"the {settings['head']} head is more than a last layer.*torch-export or onnx"
    ):
        export(tmp_path, tmp_path / "m.pth", **settings)
    assert not (tmp_path / "m.pth").exists()
    difference, x = export(tmp_path, tmp_path / "m.pt2", Form("torch-export"), **settings)
    assert difference < 1e-4
    assert torch.export.load(tmp_path / "m.pt2").module()(x).shape == (3, 3)


@pytest.mark.slow
def test_an_export_in_float16_leaves_the_model_in_float32(tmp_path):
    write_model(tmp_path / "model")
    opened = model_folder.load(tmp_path)
    tracing.program(opened, half=True)
    assert {parameter.dtype for parameter in opened.model.parameters()} == {torch.float32}


def test_the_module_that_cannot_be_exported_is_named():
    class Odd(nn.Module):
        def forward(self, x):
            return x if x.sum().item() > 0 else -x

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), Odd()), nn.Flatten())
    assert tracing.culprit(model, (torch.randn(2, 3, 4, 4),)) == "1.1 (Odd)"
    assert tracing.culprit(nn.Sequential(nn.ReLU()), (torch.randn(2, 3),)) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        *("squeezenet1_0", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0", "resnet18"),
        *("vit_b_32", "swin_t"),
    ],
)
@pytest.mark.parametrize("kind", ["onnx", "openvino", "executorch"])
def test_the_families_are_exported_for_any_batch_size(tmp_path, kind, model):
    for package in PACKAGES[kind]:
        pytest.importorskip(package)
    form = Form(kind)
    difference, _ = export(tmp_path, tmp_path / form.file_name, form, model=model, image_size=64)
    assert difference < 1e-4
    run = exports.read(model_folder.load(tmp_path), form, tmp_path / form.file_name)
    for count in (1, 5, 18):  # ExecuTorch takes 8 at once
        assert run(torch.randn(count, 3, 64, 64)).shape == (count, 3)
