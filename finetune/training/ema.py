"""An exponential moving average of the weights (Polyak & Juditsky 1992, with exponential forgetting)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from finetune.training import dropout


def make_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """The average of a model's weights and buffers; None where `decay` is 0.

    Its decay warms up (see `decay_after`), so that it also fits runs of a few hundred steps. Make it before
    `dropout.Masks` patches the model, or the copy has patched layers too.
    """
    assert not any("forward" in vars(m) for m in model.modules() if isinstance(m, dropout.DROPPING)), (
        "made after dropout"
    )

    def follow(averaged: list[Tensor], current: list[Tensor], steps: Tensor) -> None:
        if averaged[0].is_floating_point():  # torch gives the tensors of one type at a time
            get_ema_multi_avg_fn(decay_after(int(steps), decay))(averaged, current, steps)
        else:  # BatchNorm counts its batches: an average of equal integers would be rounded down
            for own, value in zip(averaged, current, strict=True):
                own.copy_(value)

    return AveragedModel(model, multi_avg_fn=follow, use_buffers=True) if decay else None


def decay_after(steps: int, decay: float) -> float:
    """The decay after so many steps: 1 - (1 + steps)^(-2/3), as timm's, until it reaches `decay`.

    At a fixed decay of 0.9998 an average of a few hundred steps would stay near the first weights.
    """
    return min(decay, 1 - (1 + steps) ** (-2 / 3))


def update(average: AveragedModel | None, model: nn.Module) -> None:
    """Add the weights after a step to the average, if there is one."""
    if average is not None:
        average.update_parameters(model)
