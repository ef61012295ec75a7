"""What is frozen in an epoch, and held so."""

from __future__ import annotations

from torch import nn

from finetune.recipe import Rate


def trained(rate: Rate | None, epoch: int) -> bool:
    """Whether a depth with this rate is trained in this epoch (from 0)."""
    return rate is not None and epoch >= rate.start


def set_phase(model: nn.Module, stages: list[list[str]], rates: list[Rate | None], epoch: int) -> None:
    """Put the model into training mode for `epoch`, its frozen depths into evaluation mode and without gradients.

    A frozen depth computes in training what it computes in use: its BatchNorm keeps its statistics (in training mode
    they would move although no parameter does), its dropout and stochastic depth are off.
    """
    model.train()
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    for paths, rate in zip(stages, rates, strict=True):
        train = trained(rate, epoch)
        for path in paths:
            if path in parameters:
                parameters[path].requires_grad_(train)
            else:
                modules[path].requires_grad_(train).train(train)
