"""The learning rate as a pure function of the update, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from finetune.recipe import Training

ONE_CYCLE_RISE, ONE_CYCLE_START = 0.3, 1 / 25  # torch's defaults


def make_schedule(training: Training, updates_per_epoch: int) -> Callable[..., float]:
    """What the peak learning rate is multiplied by, as a function of the update (from 0) and of metrics.jsonl's lines.

    `constant`; `step`: times `step_factor` every `step_epochs` epochs; `cosine`: one half period, zero after the last
    update (Loshchilov & Hutter 2017); `one_cycle`: half a cosine up, half a cosine down (Smith 2018); `plateau`: times
    `step_factor` whenever the loss has not fallen for `step_epochs` epochs: it alone looks at the past. Over the first
    `warmup` share of all updates the factor rises linearly to 1.
    """
    updates = training.epochs * updates_per_epoch
    rising = round(training.warmup * updates)
    updates_per_step = training.step_epochs * updates_per_epoch

    def factor(update: int, history: Sequence[dict[str, Any]] = ()) -> float:
        if update < rising:
            return (update + 1) / (rising + 1)
        done = (update - rising) / (updates - rising)
        if training.schedule == "step":
            return training.step_factor ** (update // updates_per_step)
        if training.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if training.schedule == "one_cycle":
            if done < ONE_CYCLE_RISE:
                return ONE_CYCLE_START + (1 - ONE_CYCLE_START) * 0.5 * (1 - math.cos(math.pi * done / ONE_CYCLE_RISE))
            return 0.5 * (1 + math.cos(math.pi * (done - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE)))
        if training.schedule == "plateau":
            return training.step_factor ** _falls([line["val_loss"] for line in history], training.step_epochs)
        return 1.0

    return factor


def _falls(losses: Sequence[float], patience: int) -> int:
    """How often a loss stayed above its minimum for `patience` epochs, counting anew after each time."""
    best, waited, falls = math.inf, 0, 0
    for loss in losses:
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if waited == patience:
            waited, falls = 0, falls + 1
    return falls


def should_stop(history: Sequence[dict[str, Any]], training: Training) -> bool:
    """Whether `patience` epochs have passed since validation's loss or accuracy (`best_by`) got better by `min_delta`.

    `history` holds the lines of metrics.jsonl. With `patience` 0, never.
    """
    best, waited = -math.inf, 0
    for line in history:
        score = -line["val_loss"] if training.best_by == "loss" else line["val_accuracy"]
        best, waited = (score, 0) if score > best + training.min_delta else (best, waited + 1)
    return bool(training.patience) and waited >= training.patience
