"""An exponential moving average of the weights (Polyak & Juditsky 1992, with exponential forgetting)."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def make_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """The average of a model's weights and buffers; None where `decay` is 0.

    Make it before `dropout.Masks` patches the model, or the copy has patched layers too.
    """
    assert not any("forward" in vars(module) for module in model.modules()), "made after dropout was patched"
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None


def update(average: AveragedModel | None, model: nn.Module) -> None:
    """Add the weights after a step to the average, if there is one."""
    if average is not None:
        average.update_parameters(model)
