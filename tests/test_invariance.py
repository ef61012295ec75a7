"""One recipe trains the same on any number of processes, with any accumulation."""

import pytest
import torch
from conftest import metrics
from safetensors.torch import load_file
from torch import nn
from torchvision.models import get_model, list_models
from torchvision.ops import StochasticDepth

from finetune import noise

# Dropout in the middle of the net, no BatchNorm, a batch that neither 3 nor 4 divides; 3 epochs × 7 updates.
FLAGS = (
    *("--recipe", "finetune", "--model", "squeezenet1_1", "--epochs", "3", "--batch-size", "3", "--mixup", "0.4"),
    # Adam divides a gradient by its own size, and so makes rounding errors of gradients near zero as large as any.
    *("--optimizer", "sgd", "--lr", "1e-2", "--keep-checkpoints", "1"),
)


@pytest.mark.usefixtures("float64")
def test_any_number_of_processes_and_parts_ends_with_the_weights_of_one(start):
    alone = start("alone", *FLAGS)
    assert alone.wait() == [0], alone.said
    moved = load_file(next(alone.output.glob("checkpoints/*/model.safetensors")))
    seen = 0
    for processes, parts in ((1, 2), (2, 1), (2, 2), (3, 1), (4, 1)):
        run = start(f"{processes}x{parts}", *FLAGS, "--accumulate", str(parts), processes=processes)
        assert set(run.wait()) == {0}, run.said
        for line, other in zip(metrics(alone.output), metrics(run.output), strict=True):
            assert (line["step"], line["lr"]) == (other["step"], other["lr"])
            for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top5"):
                assert line[key] == pytest.approx(other[key], abs=1e-6), (processes, parts, key)
        newest = load_file(next(run.output.glob("checkpoints/*/model.safetensors")))
        for key, value in moved.items():
            worst = (newest[key] - value).abs().max() / value.abs().max()
            # Rounding in float64, from where sums are taken apart: 1e-14 on any processor. (In float32 it is 1e-6 to
            # 1e-5, by the instruction set.) What is not rounding is far above.
            assert worst < 1e-12, (processes, parts, key, worst)
        seen += 1
    assert seen == 5


def dropping(*places: int, update: int = 0, total: int = 6) -> torch.Tensor:
    """What a dropout layer makes of ones, one row per place."""
    layer = nn.Sequential(nn.Dropout(0.5))
    drawn = noise.Noise(layer, seed=3)
    drawn.at(update, torch.tensor(places), total)
    return layer(torch.ones(len(places), 1000))


def test_dropout_is_a_function_of_update_and_place():
    whole = dropping(*range(6))
    assert torch.equal(dropping(4, 1), whole[[4, 1]])
    assert not torch.equal(dropping(4, 1, update=1), whole[[4, 1]])
    assert not torch.equal(whole[0], whole[1])
    assert whole.unique().tolist() == [0, 2]
    assert whole.mean().item() == pytest.approx(1, abs=0.05)


def test_each_kind_of_dropout_drops_what_torchs_does():
    x = torch.ones(8, 16, 5, 5)
    kinds = {nn.Dropout(0.3): (8, 16, 5, 5), nn.Dropout2d(0.3): (8, 16), StochasticDepth(0.3, "row"): (8,)}
    for layer, units in kinds.items():
        drawn = noise.Noise(nn.Sequential(layer), seed=0)
        drawn.at(0, torch.arange(8), 8)
        y = layer(x)
        torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / 0.7))
        assert 0 < (y == 0).float().mean() < 0.7
        flat = y.reshape(*units, -1)
        assert torch.equal(flat.amin(-1), flat.amax(-1)), "a unit is kept or dropped whole"
        assert torch.equal(layer.eval()(x), x)
    assert len(kinds) == 3


@pytest.mark.slow
def test_no_torchvision_net_draws_anything_that_is_not_by_place():
    torch.manual_seed(0)
    seen = 0
    for name in list_models(module=__import__("torchvision").models):
        if name.startswith(("raft", "regnet_y_128", "vit_h", "vit_l", "regnet_y_32", "regnet_x_32", "efficientnet_b7")):
            continue
        side = 299 if name == "inception_v3" else 64 if name.startswith(("shuffle", "mobile", "mnas", "eff")) else 224
        model = get_model(name, weights=None).train()
        drawn = noise.Noise(model, seed=0)
        x = torch.randn(2, 3, side, side)
        before = torch.get_rng_state()
        with torch.no_grad():
            drawn.at(5, torch.tensor([0, 2]), 3)
            model(x)
        assert torch.equal(torch.get_rng_state(), before), name
        seen += 1
    assert seen >= 70
