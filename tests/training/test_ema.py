"""The moving average of the weights is what is validated and saved."""

import pytest
from safetensors.torch import load_file
from torch import nn

from finetune.training import dropout, ema


def test_the_moving_average_is_what_is_saved(train):
    flags = ("--recipe", "finetune", "--lr", "1e-2", "--warmup", "0", "--batch-size", "11")
    fast, slow = (
        load_file(train(*flags, *average)[1] / "model" / "model.safetensors") for average in ((), ("--ema", "0.99"))
    )
    assert slow.keys() == fast.keys()
    # Adam's first step is lr everywhere, and the average begins there; three more count one per cent each.
    assert slow["fc.weight"].abs().max().item() == pytest.approx(1e-2, rel=0.05)
    assert fast["fc.weight"].abs().max() > 1.5e-2


def test_the_average_is_made_before_dropout_is_patched():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    assert ema.make_average(model, decay=0.9).module is not model
    dropout.Masks(model, seed=0)
    with pytest.raises(AssertionError, match="made after dropout was patched"):
        ema.make_average(model, decay=0.9)


def test_without_a_decay_there_is_no_average():
    model = nn.Sequential(nn.Linear(2, 2))
    assert ema.make_average(model, decay=0.0) is None
    ema.update(None, model)
