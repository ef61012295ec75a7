"""The state of a run: its counters, its sums, its best epoch."""

import json
import time

import pytest
import torch
from support import metrics

from finetune.training import state as state_module
from finetune.training import step
from finetune.training.state import State, is_better


def record(epoch: int, accuracy: float, loss: float = 1.0) -> dict[str, float]:
    return {"epoch": epoch, "val_accuracy": accuracy, "val_loss": loss, "val_macro_f1": 1 - accuracy}


def test_steps_and_epochs_are_counted():
    state = State(torch.zeros(3))
    for _ in range(2):
        state.finish_step(torch.tensor([0.5, 3.0, 4.0]))
    assert (state.epoch, state.step, state.sums.tolist()) == (0, 2, [1.0, 6.0, 8.0])
    assert state.finish_epoch(record(1, 0.5), "accuracy")
    assert not state.finish_epoch(record(2, 0.4), "accuracy")
    assert (state.epoch, state.step, state.sums.tolist()) == (2, 2, [0, 0, 0])
    assert [line["epoch"] for line in state.history] == [1, 2]
    assert state.best == record(1, 0.5)


def test_a_state_survives_json_and_its_clocks_go_on(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(state_module.time, "perf_counter", lambda: now[0])
    state = State(torch.tensor([1.5, 2.0, 3.0]), tracker="id")
    now[0] += 7
    state.finish_epoch(record(1, 0.5), "accuracy")
    now[0] += 2
    state.finish_step(torch.tensor([1.5, 2.0, 3.0]))
    saved = json.loads(json.dumps(state.as_json()))
    now[0] = 5000.0  # another process, later
    again = State.from_json(saved, state.sums)
    assert (again.run_clock.seconds, again.epoch_clock.seconds) == (9, 2)
    now[0] += 1
    assert (again.run_clock.seconds, again.epoch_clock.seconds) == (10, 3)
    assert again.sums.tolist() == [1.5, 2.0, 3.0]
    for name in ("epoch", "step", "history", "best", "tracker"):
        assert getattr(again, name) == getattr(state, name), name


def test_what_is_saved_does_not_change_while_training_goes_on():
    state = State(torch.zeros(3))
    state.finish_epoch(record(1, 0.5), "accuracy")
    saved = state.as_json()
    state.finish_epoch(record(2, 0.6), "accuracy")
    assert (saved["epoch"], saved["history"], saved["best"]) == (1, [record(1, 0.5)], record(1, 0.5))


@pytest.mark.parametrize(
    ("best_by", "accuracy", "loss", "better"),
    [
        ("accuracy", 0.6, 2.0, True),
        ("accuracy", 0.5, 0.9, True),
        ("accuracy", 0.5, 1.0, False),
        ("accuracy", 0.4, 0.1, False),
        ("loss", 0.4, 0.9, True),
        ("loss", 0.9, 1.0, False),
        ("macro_f1", 0.4, 0.1, True),  # it is 1 - accuracy here
        ("macro_f1", 0.6, 0.1, False),
    ],
)
def test_the_best_epoch_is_by_the_chosen_metric_then_by_loss(best_by, accuracy, loss, better):
    assert is_better(record(2, accuracy, loss), record(1, 0.5, 1.0), best_by) is better
    assert is_better(record(1, accuracy, loss), None, best_by)


def test_the_sums_of_an_epoch_count_beyond_float32(train, monkeypatch):
    flags = ("--recipe", "finetune", "--epochs", "1")
    small = metrics(train(*flags)[1])[0]
    original = step.zero_sums
    counts = iter([torch.tensor([2.0**24, 2.0**24, 0.0])])  # as if so many images had been trained before
    monkeypatch.setattr(step, "zero_sums", lambda device: original(device) + next(counts, 0))
    large = metrics(train(*flags)[1])[0]
    for name in ("train_loss", "train_accuracy"):
        assert large[name] * 21 - 2**24 == pytest.approx(small[name] * 21, abs=1e-6)


def test_a_stopwatch_adds_to_the_seconds_of_earlier_starts():
    began = time.perf_counter()
    watch = state_module.Stopwatch(1000.0)
    assert 1000 <= watch.seconds <= 1000 + time.perf_counter() - began
