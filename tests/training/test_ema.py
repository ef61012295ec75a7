"""The moving average of the weights is what is validated and saved."""

import pytest
from safetensors.torch import load_file
from torch import nn

from finetune.training import dropout, ema


def test_the_moving_average_is_what_is_saved(train):
    flags = ("--recipe", "finetune", "--lr", "1e-2", "--warmup", "0", "--batch-size", "11")
    fast, slow = (
        load_file(train(*flags, *average)[1] / "model" / "model.safetensors")
        for average in (("--ema", "0"), ("--ema", "0.99"))
    )
    assert slow.keys() == fast.keys()
    # Adam's first step is lr everywhere, and the average begins there; it lags behind the three steps that follow.
    assert 1e-2 < slow["fc.weight"].abs().max() < 0.95 * fast["fc.weight"].abs().max()


def test_the_average_follows_closely_at_first_and_reaches_its_decay():
    model = nn.Linear(1, 1, bias=False)
    average, expected = ema.make_average(model, decay=0.8), None
    for step in range(30):
        nn.init.constant_(model.weight, step)
        ema.update(average, model)
        weight = max(0.2, (1 + step) ** (-2 / 3))
        expected = step if expected is None else expected + weight * (step - expected)
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)
    assert [round(ema.decay_after(step, 0.8), 3) for step in (1, 2, 10, 11)] == [0.37, 0.519, 0.798, 0.8]


def test_counts_are_copied_and_not_averaged():
    model = nn.BatchNorm1d(2)
    model.num_batches_tracked.fill_(3519)
    average = ema.make_average(model, decay=0.99)
    for _ in range(9):
        ema.update(average, model)
    assert average.module.num_batches_tracked.item() == 3519


def test_the_average_is_made_before_dropout_is_patched():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    assert ema.make_average(model, decay=0.9).module is not model
    dropout.Masks(model, seed=0)
    with pytest.raises(AssertionError, match="made after dropout"):
        ema.make_average(model, decay=0.9)


def test_without_a_decay_there_is_no_average():
    model = nn.Sequential(nn.Linear(2, 2))
    assert ema.make_average(model, decay=0.0) is None
    ema.update(None, model)
