"""What is frozen in an epoch, and held so."""

from __future__ import annotations

import math

from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.archs import parameter_depths
from finetune.recipe import Rate


def trained(rate: Rate | None, epoch: int) -> bool:
    """Whether a depth with this rate is trained in this epoch (from 0)."""
    return rate is not None and epoch >= rate.start


def phase(rates: list[Rate | None], epoch: int) -> list[bool]:
    """Which depths are trained in an epoch; a new phase begins where this changes."""
    return [trained(rate, epoch) for rate in rates]


def frozen_epochs(rates: list[Rate | None]) -> float:
    """How many epochs the first depth stays frozen; infinity if it always is."""
    return rates[0].start if rates[0] else math.inf


def has_batchnorm(model: nn.Module, paths: list[str]) -> bool:
    """Whether there is a BatchNorm at one depth."""
    modules = dict(model.named_modules())
    return any(isinstance(m, _BatchNorm) for path in paths if path in modules for m in modules[path].modules())


def trains_batchnorm(model: nn.Module, stages: list[list[str]], rates: list[Rate | None]) -> bool:
    """Whether any depth that is ever trained takes statistics from its batches."""
    return any(rate and has_batchnorm(model, paths) for paths, rate in zip(stages, rates, strict=True))


def unchanging(model: nn.Module, stages: list[list[str]], rates: list[Rate | None]) -> set[str]:
    """The keys of the state dict that no epoch changes: parameters and buffers of depths that are never trained."""
    return {name for name, depth in parameter_depths(model, stages).items() if rates[depth] is None}


def wrap(accelerator: Accelerator, model: nn.Module, compiled: bool = False) -> nn.Module:
    """Prepare a model for the gradients that it now asks for; at each phase anew.

    DDP settles at its construction which gradients it will exchange: what is unfrozen under an old wrapper is trained
    by each process for itself, silently. The optimizer stays, since the parameters do.
    """
    accelerator._models.clear()  # else the old wrapper lives on, and its hooks with it
    # Accelerate puts autocast on the forward of the module itself, and gives back unchanged what it has once prepared:
    # so it gets a fresh module each time, and the model is never altered.
    wrapped = accelerator.prepare(nn.Sequential(model))
    if compiled:
        model.compile()  # in place: the wrapper, the keys of the state dict and the hooks stay what they are
    return wrapped


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
