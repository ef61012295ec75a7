"""An exponential moving average of the weights."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def make_average(model: nn.Module, decay: float) -> tuple[AveragedModel | None, nn.Module]:
    """The average of a model's weights and buffers, to be updated after each update, and what is validated and saved.

    Where `decay` is 0 there is no average, and the model itself is. Polyak & Juditsky 1992, in the form that forgets
    exponentially.
    """
    if not decay:
        return None, model
    # Patched dropout (`noise.Noise`) would be copied with a Noise of its own, which nobody tells the step.
    assert not any("forward" in vars(module) for module in model.modules()), "made after dropout was patched"
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return average, average.module


def update(average: AveragedModel | None, model: nn.Module) -> None:
    """Take the weights after an update into the average, if there is one."""
    if average is not None:
        average.update_parameters(model)
