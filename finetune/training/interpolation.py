"""Weights between those before and after fine-tuning (WiSE-FT, Wortsman et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from finetune.training.checkpoint import Checkpoints
from finetune.training.evaluation import Scores
from finetune.training.state import State, is_better

ALPHAS = (0.0, 0.5, 0.75, 1.0)  # the mixing coefficients: 0 is the weights before training, 1 those after it


def choose(
    state: State,
    checkpoints: Checkpoints,
    best_by: str,
    evaluate: Callable[[], Scores],
    report: Callable[[dict[str, Any], bool, bool], None],
) -> None:
    """Make the best of `ALPHAS` by validation the run's best weights, in place of the best epoch's. Collective.

    Those before training stay unless others are clearly better (`is_clear`). `evaluate` scores the network on
    validation, and `report` gets the record of each mixing coefficient, which is its field `interpolation`, whether it
    is chosen so far, and whether it is better than the one before. Call it after the last checkpoint: weights change.
    """
    network, start = checkpoints.network, checkpoints.start
    trained = {name: value.clone() for name, value in network.evaluated.state_dict().items() if name in start}
    state.best, before = None, None
    for alpha in ALPHAS:
        between = {
            name: torch.lerp(start[name].to(value), value, alpha) if value.is_floating_point() else value
            for name, value in trained.items()
        }
        network.evaluated.load_state_dict(between, strict=False)  # the rest is frozen
        epoch = state.history[-1] if alpha else state.history[0]
        scores = evaluate()
        record = epoch | scores.record(best_by) | {"interpolation": alpha}
        better = is_better(record, state.best, best_by)
        chosen = better and (before is None or is_clear(scores, before, best_by))
        before = before or scores
        if chosen:
            state.best = record
            checkpoints.keep_best(record)
        report(record, chosen, better)


def is_clear(scores: Scores, before: Scores, best_by: str) -> bool:
    """Whether scores exceed those before training by more than the standard error of their difference.

    The difference is that of the loss, or else of the accuracy, in which classes count alike where they do so in
    `best_by`. Its standard error is that of pairs (McNemar 1947): images on which both are correct, or both are wrong,
    carry no information. Source: the one-standard-error rule of Breiman et al. 1984.
    """
    if best_by == "loss":
        gains = (before.losses - scores.losses).double()  # (N,)
    else:
        correct, correct_before = (found.predictions[:, 0] == found.labels for found in (scores, before))
        gains = correct.double() - correct_before.double()
    weights = torch.ones_like(gains)
    if best_by not in ("loss", "accuracy"):
        weights = 1 / torch.bincount(scores.labels)[scores.labels].double()
    weights /= weights.sum()
    error = (weights * gains).square().sum().sqrt()
    return bool((weights * gains).sum() > error * (1 + 1e-9))  # one image alone is as large as its error
