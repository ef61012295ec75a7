"""Weights between those before and after fine-tuning (WiSE-FT, Wortsman et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from finetune.training.calibration import fit_temperature
from finetune.training.checkpoint import Checkpoints
from finetune.training.evaluation import Scores
from finetune.training.state import State, score

ALPHAS = (0.0, 0.5, 0.75, 1.0)  # the mixing coefficients: 0 is the weights before training, 1 those after it
HALF_WAY = 0.5


def choose(
    state: State,
    checkpoints: Checkpoints,
    best_by: str,
    evaluate: Callable[[], Scores],
    report: Callable[[dict[str, Any]], None],
) -> Scores:
    """Make the weights that `pick` picks the run's best, in place of the best epoch's; their scores. Collective.

    `evaluate` scores the network on validation. `report` gets the record of each mixing coefficient, which is its field
    `interpolation`, with the mean of its `calibrated_losses`. Call it after the last checkpoint: weights change.
    """
    network, start = checkpoints.network, checkpoints.start
    trained = {name: value.clone() for name, value in network.evaluated.state_dict().items() if name in start}

    def load(alpha: float) -> None:
        network.evaluated.load_state_dict(mix(start, trained, alpha), strict=False)  # the rest is frozen

    scores, losses, records = {}, {}, {}
    for alpha in ALPHAS:
        load(alpha)
        scores[alpha] = evaluate()
        losses[alpha] = calibrated_losses(scores[alpha])
        epoch = state.history[-1] if alpha else state.history[0]
        records[alpha] = epoch | scores[alpha].record(best_by) | {"interpolation": alpha}
        report(records[alpha] | {"calibrated_val_loss": losses[alpha].mean().item()})
    chosen = pick(losses, {alpha: score(record, best_by) for alpha, record in records.items()})
    load(chosen)
    state.best = records[chosen]
    checkpoints.keep_best(state.best)
    return scores[chosen]


def mix(start: dict[str, Tensor], trained: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The weights alpha of the way from `start` to `trained`; integers are those of `trained`."""
    return {
        name: torch.lerp(start[name].to(value), value, alpha) if value.is_floating_point() else value
        for name, value in trained.items()
    }


def pick(losses: dict[float, Tensor], values: dict[float, float]) -> float:
    """The mixing coefficient of the weights to take, by the `calibrated_losses` of all on validation.

    Of those that are no worse than the weights before training by `values`, the metric of `--best-by`, and whose loss
    is within one standard error of the lowest, it is the nearest to half-way, the coefficient that Wortsman et al.
    recommend where nothing is known (one-standard-error rule: Breiman et al. 1984).
    """
    no_worse = [alpha for alpha in ALPHAS if values[alpha] >= values[0.0]]
    lowest = min((losses[alpha] for alpha in no_worse), key=torch.mean)
    close = [alpha for alpha in no_worse if _is_close(losses[alpha], lowest)]
    return min(close, key=lambda alpha: abs(alpha - HALF_WAY))


def calibrated_losses(scores: Scores) -> Tensor:
    """Each image's loss (N,), in nats, at the temperature with the lowest (Guo et al. 2017), as the model is saved."""
    return scores.at_temperature(fit_temperature(scores.logits, scores.labels)).losses.double()


def _is_close(losses: Tensor, lowest: Tensor) -> bool:
    """Whether a mean of losses (N,) is above another's by no more than the standard error of the difference."""
    differences = losses - lowest
    return bool(differences.mean() <= differences.std(correction=0) / len(differences) ** 0.5)
