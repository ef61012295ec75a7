"""The learning rate as a pure function of the step, and early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from finetune.config.settings import Training
from finetune.training.state import score

ONE_CYCLE_RISE, ONE_CYCLE_START = 0.3, 1 / 25  # torch's defaults
AUTO_LOWEST, AUTO_HIGHEST = 2e-4, 1e-3  # bounds of `--lr auto`


def rate_per_nat(normalised: bool) -> float:
    """`--lr auto` for each nat of the head's held-out loss. `normalised`: whether the network has such layers."""
    return 6e-4 if normalised else 3e-4


def peak_rate(lr: float | Literal["auto"], history: Sequence[dict[str, Any]] = (), normalised: bool = True) -> float:
    """The peak learning rate that `--lr` means, given metrics.jsonl's records.

    `auto` asks the first one, which is the solved head's where one is solved: where a head is sure, its features have
    little to gain from a high rate, and much to lose. A network without normalisation layers loses them sooner.
    """
    if lr != "auto":
        return lr
    loss = history[0].get("fold_loss", 0.0) if history else 0.0
    return min(max(rate_per_nat(normalised) * loss, AUTO_LOWEST), AUTO_HIGHEST)


def make_schedule(training: Training, steps_per_epoch: int) -> Callable[..., float]:
    """The factor of the peak learning rate, as a function of the step (from 0) and of metrics.jsonl's records.

    `constant`; `step`: times `step_factor` every `step_epochs` epochs; `cosine`: half a period, zero after the last
    step (Loshchilov & Hutter 2017); `one_cycle`: half a cosine up, half a cosine down (Smith 2018); `plateau`: times
    `step_factor` whenever the validation loss has not fallen for `step_epochs` epochs: it alone reads the records. Over
    the first `warmup` fraction of all steps the factor rises linearly to 1.
    """
    steps = training.epochs * steps_per_epoch
    warmup_steps = round(training.warmup * steps)
    steps_per_fall = training.step_epochs * steps_per_epoch

    def factor(step: int, history: Sequence[dict[str, Any]] = ()) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = (step - warmup_steps) / (steps - warmup_steps)  # in [0, 1)
        if training.schedule == "step":
            return training.step_factor ** (step // steps_per_fall)
        if training.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        if training.schedule == "one_cycle":
            if progress < ONE_CYCLE_RISE:
                rise = 0.5 * (1 - math.cos(math.pi * progress / ONE_CYCLE_RISE))
                return ONE_CYCLE_START + (1 - ONE_CYCLE_START) * rise
            return 0.5 * (1 + math.cos(math.pi * (progress - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE)))
        if training.schedule == "plateau":
            return training.step_factor ** _falls([record["val_loss"] for record in history], training.step_epochs)
        return 1.0

    return factor


def _falls(losses: Sequence[float], patience: int) -> int:
    """How often a loss stayed above its minimum for `patience` epochs; counting starts again after each time."""
    best, waited, falls = math.inf, 0, 0
    for loss in losses:
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if waited == patience:
            waited, falls = 0, falls + 1
    return falls


def should_stop(history: Sequence[dict[str, Any]], training: Training) -> bool:
    """Whether the metric `best_by` has not improved by `min_delta` for `patience` epochs. Never with `patience` 0.

    `history` holds the records of metrics.jsonl.
    """
    best, waited = -math.inf, 0
    for record in history:
        now = score(record, training.best_by)
        best, waited = (now, 0) if now > best + training.min_delta else (best, waited + 1)
    return bool(training.patience) and waited >= training.patience
