"""Weights between those before and after fine-tuning (WiSE-FT, Wortsman et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from finetune.training.checkpoint import Checkpoints
from finetune.training.evaluation import Scores
from finetune.training.state import State, score

HALF = 0.5
ALPHAS = (0.0, HALF, 0.75, 1.0)  # the mixing coefficients: 0 is the weights before training, 1 those after it


def choose(
    state: State,
    checkpoints: Checkpoints,
    best_by: str,
    evaluate: Callable[[], Scores],
    report: Callable[[dict[str, Any]], None],
) -> Scores:
    """Make the weights that `pick` picks the run's best, in place of the best epoch's; their scores. Collective.

    `evaluate` scores the network on validation. `report` gets the record of each mixing coefficient, which is its field
    `interpolation`. Call it after the last checkpoint: weights change.
    """
    network, start = checkpoints.network, checkpoints.start
    trained = {name: value.clone() for name, value in network.evaluated.state_dict().items() if name in start}

    def load(alpha: float) -> None:
        between = {
            name: torch.lerp(start[name].to(value), value, alpha) if value.is_floating_point() else value
            for name, value in trained.items()
        }
        network.evaluated.load_state_dict(between, strict=False)  # the rest is frozen

    scores, records = {}, {}
    for alpha in ALPHAS:
        load(alpha)
        scores[alpha] = evaluate()
        epoch = state.history[-1] if alpha else state.history[0]
        records[alpha] = epoch | scores[alpha].record(best_by) | {"interpolation": alpha}
        report(records[alpha])
    chosen = pick(scores, best_by)
    load(chosen)
    state.best = records[chosen]
    checkpoints.keep_best(state.best)
    return scores[chosen]


def pick(scores: dict[float, Scores], best_by: str) -> float:
    """The mixing coefficient of the weights to take, by the scores of all on validation.

    Half of the way is taken unless the weights before training are better. Those nearer to the trained ones must be
    clearly better (`is_clear`) than what was taken so far: few images tell little, and half of the way is near the best
    for most networks and images (Wortsman et al. 2022, where it needs no choice).
    """
    records = {alpha: found.record(best_by) for alpha, found in scores.items()}
    first = HALF if score(records[HALF], best_by) >= score(records[0.0], best_by) else 0.0
    clear = [alpha for alpha in ALPHAS if alpha > HALF and is_clear(scores[alpha], scores[first], best_by)]
    return max(clear, key=lambda alpha: (score(records[alpha], best_by), -records[alpha]["val_loss"]), default=first)


def is_clear(scores: Scores, others: Scores, best_by: str) -> bool:
    """Whether scores exceed others of the same images by more than the standard error of their difference.

    The difference is that of the loss, or else of the accuracy, in which classes count alike where they do so in
    `best_by`. Its standard error is that of pairs (McNemar 1947): images on which both are correct, or both are wrong,
    carry no information. Source: the one-standard-error rule of Breiman et al. 1984.
    """
    if best_by == "loss":
        gains = (others.losses - scores.losses).double()  # (N,)
    else:
        right, right_others = (found.predictions[:, 0] == found.labels for found in (scores, others))
        gains = right.double() - right_others.double()
    weights = torch.ones_like(gains)
    if best_by not in ("loss", "accuracy"):
        weights = 1 / torch.bincount(scores.labels)[scores.labels].double()
    weights /= weights.sum()
    error = (weights * gains).square().sum().sqrt()
    return bool((weights * gains).sum() > error * (1 + 1e-9))  # one image alone is as large as its error
