"""Dropout is a function of (seed, step, position in the global batch)."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import get_model, list_models
from torchvision.ops import StochasticDepth

from finetune.training import dropout


def dropped(*positions: int, step: int = 0, batch_size: int = 6) -> torch.Tensor:
    """What a dropout layer makes of ones, one row per position."""
    layer = nn.Sequential(nn.Dropout(0.5))
    masks = dropout.Masks(layer, seed=3)
    masks.at(step, torch.tensor(positions), batch_size)
    return layer(torch.ones(len(positions), 1000))


def test_dropout_is_a_function_of_step_and_position():
    whole = dropped(*range(6))
    assert torch.equal(dropped(4, 1), whole[[4, 1]])
    assert not torch.equal(dropped(4, 1, step=1), whole[[4, 1]])
    assert not torch.equal(whole[0], whole[1])
    assert whole.unique().tolist() == [0, 2]
    assert whole.mean().item() == pytest.approx(1, abs=0.05)


def test_each_kind_of_dropout_drops_what_torchs_does():
    x = torch.ones(8, 16, 5, 5)
    kinds = {nn.Dropout(0.3): (8, 16, 5, 5), nn.Dropout2d(0.3): (8, 16), StochasticDepth(0.3, "row"): (8,)}
    for layer, units in kinds.items():
        masks = dropout.Masks(nn.Sequential(layer), seed=0)
        masks.at(0, torch.arange(8), 8)
        y = layer(x)
        torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / 0.7))
        assert 0 < (y == 0).float().mean() < 0.7
        flat = y.reshape(*units, -1)
        assert torch.equal(flat.amin(-1), flat.amax(-1)), "a unit is kept or dropped whole"
        assert torch.equal(layer.eval()(x), x)
    assert len(kinds) == 3


@pytest.mark.slow
def test_no_torchvision_network_draws_from_torchs_own_generator():
    torch.manual_seed(0)
    seen = 0
    for name in list_models(module=torchvision.models):
        if name.startswith(("raft", "regnet_y_128", "vit_h", "vit_l", "regnet_y_32", "regnet_x_32", "efficientnet_b7")):
            continue
        side = 299 if name == "inception_v3" else 64 if name.startswith(("shuffle", "mobile", "mnas", "eff")) else 224
        model = get_model(name, weights=None).train()
        masks = dropout.Masks(model, seed=0)
        x = torch.randn(2, 3, side, side)
        before = torch.get_rng_state()
        with torch.no_grad():
            masks.at(5, torch.tensor([0, 2]), 3)
            model(x)
        assert torch.equal(torch.get_rng_state(), before), name
        seen += 1
    assert seen >= 70
