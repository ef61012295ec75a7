"""The learning rate is a pure function of the update."""

import pytest
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from finetune.recipe import Training
from finetune.schedule import make_schedule


def test_step_equals_torchs_step_lr():
    training = Training(epochs=12, schedule="step", step_epochs=5, step_factor=0.1)
    factor = make_schedule(training, updates_per_epoch=3)
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    reference = StepLR(optimizer, 5, 0.1)
    seen = 0
    for epoch in range(12):
        for update in range(3 * epoch, 3 * epoch + 3):
            assert factor(update) == pytest.approx(optimizer.param_groups[0]["lr"])
            seen += 1
        optimizer.step()
        reference.step()
    assert seen == 36


def test_cosine_equals_torchs_annealing():
    factor = make_schedule(Training(epochs=4, schedule="cosine", warmup=0.0), updates_per_epoch=5)
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    reference = CosineAnnealingLR(optimizer, 20)
    for update in range(20):
        assert factor(update) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


def test_warmup_rises_linearly_and_then_the_schedule_begins():
    factor = make_schedule(Training(epochs=10, schedule="cosine", warmup=0.4), updates_per_epoch=1)
    assert [factor(k) for k in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(factor(k) > factor(k + 1) for k in range(4, 9))
    assert 0 < factor(9) < 0.1
