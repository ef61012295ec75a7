"""The learning rate is a pure function of the step; early stopping one of the records."""

import pytest
import torch
from safetensors.torch import load_file
from support import metrics
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, StepLR

from finetune.config.settings import Training
from finetune.training.schedule import make_schedule, peak_rate, should_stop

CALTECH_LOSSES = (0.3606, 0.3060, 0.2639, 0.2218, 0.2080, 0.2523, 0.3576, 0.55)  # of a published run


def records(losses):
    return [{"epoch": k + 1, "val_loss": value, "val_accuracy": 0.5} for k, value in enumerate(losses)]


@pytest.mark.parametrize(
    ("lr", "first", "normalised", "expected"),
    [
        ("auto", {"fold_loss": 0.1}, True, 2e-4),
        ("auto", {"fold_loss": 0.75}, True, 4.5e-4),
        ("auto", {"fold_loss": 3.0}, True, 1e-3),
        ("auto", {"fold_loss": 1.0}, False, 3e-4),
        ("auto", {"fold_loss": 4.0}, False, 1e-3),
        ("auto", {}, True, 2e-4),  # an epoch's record: no head was solved
        ("auto", None, True, 2e-4),
        (3e-3, {"fold_loss": 0.75}, True, 3e-3),
    ],
)
def test_the_peak_rate_follows_the_held_out_loss_of_the_solved_head(lr, first, normalised, expected):
    history = [] if first is None else [first, {"fold_loss": 9.0}]
    assert peak_rate(lr, history, normalised) == pytest.approx(expected)


def test_step_equals_torchs_step_lr():
    training = Training(epochs=12, schedule="step", step_epochs=5, step_factor=0.1)
    factor = make_schedule(training, steps_per_epoch=3)
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    reference = StepLR(optimizer, 5, 0.1)
    seen = 0
    for epoch in range(12):
        for step in range(3 * epoch, 3 * epoch + 3):
            assert factor(step) == pytest.approx(optimizer.param_groups[0]["lr"])
            seen += 1
        optimizer.step()
        reference.step()
    assert seen == 36


def test_cosine_equals_torchs_annealing():
    factor = make_schedule(Training(epochs=4, schedule="cosine", warmup=0.0), steps_per_epoch=5)
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    reference = CosineAnnealingLR(optimizer, 20)
    for step in range(20):
        assert factor(step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


def test_one_cycle_equals_torchs():
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = OneCycleLR(optimizer, max_lr=1.0, total_steps=1001, final_div_factor=1e9)
    factor = make_schedule(Training(epochs=1000, schedule="one_cycle", warmup=0.0), 1)
    for step in range(1000):
        assert factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=6e-3)
        optimizer.step()
        reference.step()


def test_warmup_rises_linearly_and_then_the_schedule_begins():
    factor = make_schedule(Training(epochs=10, schedule="cosine", warmup=0.4), steps_per_epoch=1)
    assert [factor(k) for k in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(factor(k) > factor(k + 1) for k in range(4, 9))
    assert 0 < factor(9) < 0.1


def test_plateau_falls_when_the_loss_has_not_for_so_many_epochs():
    factor = make_schedule(Training(schedule="plateau", step_epochs=2, step_factor=0.5), 1)
    losses = [1.0, 0.9, 0.95, 0.92, 0.91, 0.93, 0.8]
    assert [factor(0, records(losses[:n])) for n in range(8)] == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]


def test_early_stopping_stops_where_the_caltech_run_did():
    training = Training(best_by="loss", patience=3)
    stops = [should_stop(records(CALTECH_LOSSES[:n]), training) for n in range(1, 9)]
    assert stops == [False] * 7 + [True]
    assert not should_stop(records(CALTECH_LOSSES), Training(best_by="loss", patience=0))
    assert should_stop(records((1.0, 0.99, 0.98)), Training(best_by="loss", patience=2, min_delta=0.05))


def test_early_stopping_ends_a_run_and_keeps_the_best(train):
    flags = ("--recipe", "finetune", "--lr", "3e-3", "--schedule", "constant", "--warmup", "0", "--best-by", "loss")
    code, output = train(*flags, "--patience", "1", "--epochs", "9")
    assert code == 0
    losses = [record["val_loss"] for record in metrics(output)]
    best = losses.index(min(losses)) + 1
    assert len(losses) == best + 1 < 9, "it stops at the first epoch that is not the best"
    kept = load_file(output / "model/model.safetensors")
    known = load_file(train(*flags, "--epochs", str(best))[1] / "model/model.safetensors")
    assert all(torch.equal(kept[key], value) for key, value in known.items())
