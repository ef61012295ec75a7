"""What an export cannot do is said, with the part that is in the way."""

import pytest
import torch
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
