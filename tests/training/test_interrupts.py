"""When a checkpoint is due, and what a signal asks for."""

import os
import signal
import sys

import pytest
from accelerate import Accelerator
from support import SIGNALS, reset_accelerate

from finetune.config.bounds import period
from finetune.errors import UserError
from finetune.training import interrupts as module
from finetune.training.interrupts import Interrupts, Stopped

NEVER = (sys.maxsize, float("inf"))


@pytest.fixture
def make():
    """Interrupts of one process."""
    reset_accelerate()
    return lambda every_steps, every_seconds: Interrupts(Accelerator(cpu=True), every_steps, every_seconds)


def due(interrupts: Interrupts, step: int) -> bool:
    interrupts.exchange()
    return interrupts.checkpoint_due(step)


def test_a_checkpoint_is_due_by_steps_or_by_the_clock(make):
    by_steps = make(3, float("inf"))
    assert [step for step in range(1, 8) if due(by_steps, step)] == [3, 6]
    assert due(make(sys.maxsize, 0.0), 1)
    assert not due(make(*NEVER), 1)


def test_a_checkpoint_that_falls_due_in_evaluation_is_written_after_the_next_step(make, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    by_clock = make(sys.maxsize, 600.0)
    clock[0] = 601.0
    by_clock.raise_if_stopped()
    assert due(by_clock, 1)
    assert not due(by_clock, 2), "the next is due in ten minutes"


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_asks_to_stop_and_is_named(make, number):
    signal.signal(number, signal.SIG_DFL)  # the tests may run under nohup
    interrupts = make(*NEVER)
    interrupts.raise_if_stopped()
    os.kill(os.getpid(), number)
    for check in (interrupts.raise_if_stopped, lambda: due(interrupts, 1)):
        with pytest.raises(Stopped):
            check()
    assert interrupts.signal == number.name
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_a_signal_in_a_step_is_answered_after_the_next_exchange(make):
    interrupts = make(*NEVER)
    interrupts.exchange()
    os.kill(os.getpid(), signal.SIGTERM)  # while the step is computed: the others do not know of it yet
    assert not interrupts.checkpoint_due(1)
    with pytest.raises(Stopped):
        due(interrupts, 2)


def test_checkpoint_every_takes_steps_minutes_and_zero():
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
