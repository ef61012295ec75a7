"""The state of a run: every counter of the loop, and no other copy of them. Checkpoints save it with the tensors."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from finetune.config.schema import Number
from finetune.config.settings import Bounds, NonNegativeFloat, NonNegativeInt, PositiveInt, Probability

if TYPE_CHECKING:
    from torch import Tensor

Count = Annotated[int, Bounds(at_least=0, at_most=2**53)]  # of steps: epochs times batches
# The entries of a record of metrics.jsonl that every run has.
RECORD = {
    "epoch": NonNegativeInt, "step": Count, "lr": dict[str, Number], "train_loss": Number,
    "train_accuracy": Probability, "val_loss": Number, "val_accuracy": Probability,
    "images_per_second": NonNegativeFloat, "seconds": NonNegativeFloat,
}  # fmt: skip
# The entries of `State.as_json`.
SAVED = {
    "epoch": NonNegativeInt, "step": Count, "history": list[dict[str, Any]], "best": dict[str, Any] | None,
    "epochs": NonNegativeInt, "accumulate": PositiveInt, "tracker": str, "run_clock": NonNegativeFloat,
    "epoch_clock": NonNegativeFloat,
}  # fmt: skip


class Stopwatch:
    """Seconds since its construction, plus those of the run's earlier starts."""

    def __init__(self, seconds: float = 0.0) -> None:
        """`seconds` are those of the earlier starts."""
        self.start = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start


@dataclass
class State:
    """The state of a run between two steps."""

    sums: Tensor
    """(3,): loss summed over the images, correct predictions and images; of the epoch so far, on this process."""
    epoch: int = 0
    """The current epoch, from 0."""
    step: int = 0
    """Optimizer steps taken. Where the current epoch has none left, only its evaluation is missing."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """The records of metrics.jsonl."""
    best: dict[str, Any] | None = None
    """The best of these records."""
    epochs: int = 0
    """The epochs of the whole run, which `--minutes` may have reduced."""
    accumulate: int = 1
    """Micro-batches of the last step, with which `--accumulate auto` goes on."""
    tracker: str = ""
    """The tracker's id of the run."""
    run_clock: Stopwatch = field(default_factory=Stopwatch)
    """Seconds of the run, over all its starts."""
    epoch_clock: Stopwatch = field(default_factory=Stopwatch)
    """Seconds of the current epoch, over all starts."""

    def finish_step(self, sums: Tensor, accumulate: int = 1) -> None:
        """Count a step of so many micro-batches and add its sums."""
        self.step += 1
        self.accumulate = accumulate
        self.sums = self.sums + sums

    def add(self, record: dict[str, Any], improved: bool) -> None:
        """Append a record; `improved` says whether it is the best so far."""
        self.history.append(record)
        if improved:
            self.best = record
        self.epoch_clock = Stopwatch()

    def finish_epoch(self, record: dict[str, Any], best_by: str) -> bool:
        """Append an epoch's record and begin the next epoch; whether the record is the best so far."""
        improved = is_better(record, self.best, best_by)
        self.add(record, improved)
        self.epoch += 1
        self.sums = self.sums.new_zeros(3)
        return improved

    def as_json(self) -> dict[str, Any]:
        """A JSON-serialisable copy of all but the sums, for `from_json`."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "history": [*self.history],  # a checkpoint is written while training goes on, and appends to it
            "best": self.best,
            "epochs": self.epochs,
            "accumulate": self.accumulate,
            "tracker": self.tracker,
            "run_clock": self.run_clock.seconds,
            "epoch_clock": self.epoch_clock.seconds,
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any], sums: Tensor) -> State:
        """The state that `as_json` described. Both clocks continue from their saved values."""
        clocks = {name: Stopwatch(saved[name]) for name in ("run_clock", "epoch_clock")}
        return cls(sums, **saved | clocks)


def is_better(record: dict[str, Any], best: dict[str, Any] | None, best_by: str) -> bool:
    """Whether an epoch's record beats the best so far: by `best_by`, then loss."""
    if best is None:
        return True
    return (score(record, best_by), -record["val_loss"]) > (score(best, best_by), -best["val_loss"])


def score(record: dict[str, Any], best_by: str) -> float:
    """The validation metric `best_by` of a record of metrics.jsonl, as a number of which more is better."""
    return -record["val_loss"] if best_by == "loss" else record[f"val_{best_by}"]
