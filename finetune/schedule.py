"""The learning rate as a pure function of the update."""

from __future__ import annotations

import math
from collections.abc import Callable

from finetune.recipe import Training


def make_schedule(training: Training, updates_per_epoch: int) -> Callable[[int], float]:
    """What the peak learning rate is multiplied by, as a function of the update (from 0).

    `constant`; `step`: times `step_factor` every `step_epochs` epochs; `cosine`: one half period, zero after the last
    update (Loshchilov & Hutter 2017). Over the first `warmup` share of all updates the factor rises linearly to 1.
    """
    updates = training.epochs * updates_per_epoch
    rising = round(training.warmup * updates)
    updates_per_step = training.step_epochs * updates_per_epoch

    def factor(update: int) -> float:
        if update < rising:
            return (update + 1) / (rising + 1)
        if training.schedule == "step":
            return training.step_factor ** (update // updates_per_step)
        if training.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (update - rising) / (updates - rising)))
        return 1.0

    return factor
