"""Trackers: the metrics of a run in W&B, TensorBoard or another of Accelerate's trackers.

A backend is a module with three functions: `start` starts the run and returns a line for the console, `log_summary` and
`log_end` log the results. Trackers without a backend of their own use `accelerate_backend`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from finetune.config.settings import Recipe
from finetune.data.dataset import Samples
from finetune.reporting import accelerate_backend, tensorboard_backend, wandb_backend
from finetune.runtime import files
from finetune.training.evaluation import Scores
from finetune.training.step import StepResult

BACKENDS = {"wandb": wandb_backend, "tensorboard": tensorboard_backend}


@dataclass(frozen=True)
class Start:
    """What a backend needs to start a run."""

    accelerator: Accelerator
    recipe: Recipe
    config: dict[str, Any]
    """config.json."""
    output: Path
    id: str
    resumed: bool
    """Whether an earlier start of the run has used the id."""


@dataclass(frozen=True)
class Results:
    """What a backend logs at a run's end."""

    output: Path
    summary: dict[str, Any]
    scores: Scores
    """Of the best epoch, on `samples`."""
    samples: Samples
    """The validation images."""
    classes: list[str]
    log_model: bool


class Tracker:
    """A tracker whose failures never stop the run. It logs on the main process.

    The run's id and the last logged step are written to a file before each step is logged: a run that was killed, even
    before its first checkpoint, logs no repeated step twice. A training step counts as half a step before the epoch
    that may end with it.
    """

    def __init__(self, accelerator: Accelerator, recipe: Recipe, config: dict[str, Any], output: Path, id: str) -> None:
        """`id` is the checkpoint's, or empty."""
        self.accelerator, self.run, self.batch_size = accelerator, recipe.run, recipe.training.batch_size
        self.auto = recipe.training.accumulate == "auto"
        self.timed_from = (0, 0.0)  # a step, and when it was logged
        self.ledger = output / ".tracked"
        known, step = self.ledger.read_text().split() if self.ledger.exists() else (id, -1)
        self.id, self.step = known or uuid.uuid4().hex[:8], float(step)
        self.on, self.status = recipe.run.tracker != "none", "No tracker"
        self.backend = BACKENDS.get(recipe.run.tracker, accelerate_backend)
        if self.on:
            if accelerator.is_main_process:
                self._note()
            start = Start(accelerator, recipe, config, output, self.id, resumed=bool(known))
            self.status = self._guard(self.backend.start, start) or f"{recipe.run.tracker}: off"
            self.on = self.on and bool(accelerator.trackers)

    def log_step(self, step: int, result: StepResult) -> None:
        """Log one in every `--log-every` steps (from 1): this process's mean loss, the gradient norm, the speed."""
        every = self.run.log_every
        if not (self.on and self.accelerator.is_main_process and every) or step % every or not self._is_new(step - 0.5):
            return
        loss, _, images = result.sums.tolist()
        values = {"step/loss": loss / max(images, 1), "step/gradient_norm": float(result.gradient_norm)}
        values |= {"step/accumulate": result.accumulate} if self.auto else {}
        before, now = self.timed_from, (step, time.perf_counter())
        if before[0]:
            values["step/images_per_second"] = (step - before[0]) * self.batch_size / (now[1] - before[1])
        self.timed_from = now
        self._guard(self.accelerator.log, values, step)

    def log_epoch(self, record: dict[str, Any]) -> None:
        """Log a record of metrics.jsonl at its step, the learning rates one by one."""
        self.timed_from = (0, 0.0)  # the time between two epochs is not training
        if self.on and self._is_new(record["step"]):
            rates = {f"lr/{name}": rate for name, rate in record["lr"].items()}
            values = {key: value for key, value in record.items() if key not in ("lr", "step")}
            self._guard(self.accelerator.log, values | rates, record["step"])

    def log_end(
        self, step: int, output: Path, summary: dict[str, Any], scores: Scores, samples: Samples, classes: list[str]
    ) -> None:
        """Log the summary, and once, behind the last step, the pictures and, with `--log-model`, the model.

        `scores` are the best epoch's on `samples`, the validation images.
        """
        if not self.on:
            return
        native = self.accelerator.trackers[0].tracker
        self._guard(self.backend.log_summary, native, summary)
        if self.on and self._is_new(step + 1):
            results = Results(output, summary, scores, samples, classes, self.run.log_model)
            self._guard(self.backend.log_end, native, step + 1, results)

    def finish(self) -> None:
        """Flush and close the tracker."""
        if self.on:
            # Not accelerator.end_training: it destroys the process group, which is still needed.
            self._guard(lambda: [tracker.finish() for tracker in self.accelerator.trackers])

    def _is_new(self, step: float) -> bool:
        """Whether this step has not been logged; notes it as logged."""
        if step <= self.step:
            return False
        self.step = step
        if self.accelerator.is_main_process:
            self._note()
        return True

    def _note(self) -> None:
        files.write_text(self.ledger, f"{self.id} {self.step}\n")

    def _guard(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """The call's result. An exception ends the tracking, with a message, and never the run."""
        try:
            return call(*arguments)
        except Exception as error:
            self.on = False
            self.accelerator.trackers = []
            print(f"The tracker failed and is off ({type(error).__name__}: {error}). metrics.jsonl goes on.")
            return None
