"""Exports give the model's logits; an error names the module that cannot be exported."""

import pytest
import torch
from support import write_model
from torch import nn

from finetune.errors import UserError
from finetune.inference import export
from finetune.models import model_folder


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
    write_model(tmp_path / "model", **settings)
    opened = model_folder.load(tmp_path)
    x = torch.randn(3, settings.get("in_channels", 3), opened.preprocess.crop, opened.preprocess.crop)
    if settings.get("head") == "mlp":  # more than one layer: what torchvision's own model has no place for
        with pytest.raises(UserError, match="the mlp head is more than a last layer"):
            export.write(opened, "state-dict", tmp_path / "m.pth", x, False, 18)
        assert not (tmp_path / "m.pth").exists()
        return
    assert export.write(opened, "state-dict", tmp_path / "m.pth", x, False, 18) < 1e-4
    assert all(isinstance(value, torch.Tensor) for value in torch.load(tmp_path / "m.pth", weights_only=True).values())


def test_a_rich_head_is_named_and_another_format_takes_it(tmp_path):
    write_model(tmp_path / "model", head="concat_pool", hidden=(8,))
    opened = model_folder.load(tmp_path)
    x = torch.randn(3, 3, 32, 32)
    with pytest.raises(UserError, match=r"the concat_pool head is more than a last layer.*torch-export or onnx"):
        export.write(opened, "state-dict", tmp_path / "m.pth", x, False, 18)
    assert export.write(opened, "torch-export", tmp_path / "m.pt2", x, False, 18) < 1e-4
    assert torch.export.load(tmp_path / "m.pt2").module()(x).shape == (3, 3)


def test_the_module_that_cannot_be_exported_is_named():
    class Odd(nn.Module):
        def forward(self, x):
            return x if x.sum().item() > 0 else -x

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), Odd()), nn.Flatten())
    assert export.culprit(model, (torch.randn(2, 3, 4, 4),)) == "1.1 (Odd)"
    assert export.culprit(nn.Sequential(nn.ReLU()), (torch.randn(2, 3),)) == ""
