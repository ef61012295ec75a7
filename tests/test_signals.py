"""When a checkpoint is due, and what a signal asks for."""

import os
import signal
import sys

import pytest
from accelerate import Accelerator
from conftest import SIGNALS, metrics, reset_accelerate

from finetune.checks import period
from finetune.errors import UserError
from finetune.signals import Requests

NEVER = (sys.maxsize, float("inf"))


@pytest.fixture
def requests():
    """Of one process."""
    reset_accelerate()
    return lambda updates, seconds: Requests(Accelerator(cpu=True), updates, seconds)


def test_a_checkpoint_is_due_by_updates_or_by_the_clock(requests):
    by_updates = requests(3, float("inf"))
    due = []
    for done in range(1, 8):
        by_updates.share()
        due.append(by_updates.agreed(done))
    assert due == [(False, done % 3 == 0) for done in range(1, 8)]
    by_clock = requests(sys.maxsize, 0.0)
    by_clock.share()
    assert by_clock.agreed(1) == (False, True)
    never = requests(*NEVER)
    never.share()
    assert never.agreed(1) == (False, False)


def test_a_checkpoint_that_falls_due_in_evaluation_is_written_after_the_next_update(requests, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("finetune.signals.time.monotonic", lambda: clock[0])
    by_clock = requests(sys.maxsize, 600.0)
    clock[0] = 601.0
    assert not by_clock.stop()
    by_clock.share()
    assert by_clock.agreed(1) == (False, True)
    by_clock.share()
    assert by_clock.agreed(2) == (False, False), "the next is due in ten minutes"


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_asks_to_stop_and_is_named(requests, number):
    asked = requests(*NEVER)
    assert not asked.stop()
    os.kill(os.getpid(), number)
    assert asked.stop()
    assert asked.asked_by == number.name
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_checkpoint_every_takes_updates_minutes_and_zero():
    assert period("500") == (500, float("inf"))
    assert period("1.5m") == (sys.maxsize, 90.0)
    assert period("0") == period("0m") == NEVER
    for wrong in ("", "m", "-3", "ten", "5s", "1.5"):
        with pytest.raises(UserError, match="--checkpoint-every"):
            period(wrong)


def test_a_run_writes_checkpoints_by_the_clock(train):
    code, output = train("--checkpoint-every", "0.00001m", "--keep-checkpoints", "9", "--epochs", "1")
    assert code == 0
    names = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert names == ["0000-00000001", "0000-00000002", "0000-00000003", "0001-00000003"]


@pytest.mark.slow
def test_a_compiled_net_trains_as_the_plain_one(train):
    flags = ("--recipe", "feature_extractor", "--weights", "starter")
    (code, plain), (other, compiled) = train(*flags), train(*flags, "--compile")
    assert (code, other) == (0, 0)
    for line, same in zip(metrics(plain), metrics(compiled), strict=True):
        for key in ("train_loss", "val_loss"):
            assert same[key] == pytest.approx(line[key], rel=1e-4)
