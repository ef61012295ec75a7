"""Weights between those before and after fine-tuning (WiSE-FT, Wortsman et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from finetune.training.checkpoint import Checkpoints
from finetune.training.evaluation import Scores
from finetune.training.state import State, is_better

SHARES = (0.0, 0.5, 0.75, 1.0)  # of the trained weights; the rest is of those before training


def choose(
    state: State,
    checkpoints: Checkpoints,
    best_by: str,
    evaluate: Callable[[], Scores],
    report: Callable[[dict[str, Any], bool], None],
) -> None:
    """Make the best of `SHARES` by validation the run's best weights, in place of the best epoch's. Collective.

    `evaluate` scores the network on validation, and `report` gets the record of each share, with the field
    `interpolation`, and whether it is the best so far. Call it after the last checkpoint: the network's weights change.
    """
    network, start = checkpoints.network, checkpoints.start
    trained = {name: value.clone() for name, value in network.evaluated.state_dict().items() if name in start}
    state.best = None
    for share in SHARES:
        between = {
            name: torch.lerp(start[name].to(value), value, share) if value.is_floating_point() else value
            for name, value in trained.items()
        }
        network.evaluated.load_state_dict(between, strict=False)  # the rest is frozen
        epoch = state.history[-1] if share else state.history[0]
        record = epoch | evaluate().record(best_by) | {"interpolation": share}
        if improved := is_better(record, state.best, best_by):
            state.best = record
            checkpoints.keep_best(record)
        report(record, improved)
