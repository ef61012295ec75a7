"""The network of a run: the model, its transform, its depths and their rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from finetune import recipes
from finetune.config.settings import Rate, Recipe
from finetune.errors import UserError
from finetune.models import surgery
from finetune.models.architectures import Family, Preprocess, find, parameter_depths

BATCHNORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass
class Network:
    """A model with what a run needs to train it. A run has one."""

    model: nn.Module
    preprocess: Preprocess
    """The evaluation transform."""
    stages: list[list[str]]
    """The paths of the modules and single parameters at each depth, stem first."""
    rates: list[Rate | None]
    """The rate of each depth; None if it is frozen."""
    family: Family
    average: AveragedModel | None = None
    """The moving average of the weights, with `--ema`."""

    @property
    def evaluated(self) -> nn.Module:
        """The model to evaluate and save: the average if there is one."""
        return self.average.module if self.average else self.model

    @property
    def head(self) -> nn.Module:
        """The layer that computes the logits, where the head is linear: nn.Linear, or nn.Conv2d of 1 × 1."""
        return self.model.get_submodule(self.family.head)

    @torch.no_grad()
    def set_head(self, weight: Tensor, bias: Tensor) -> None:
        """Set a linear head's weight (classes, features) and bias (classes,), also in the average."""
        for model in (self.model, self.evaluated):
            head = model.get_submodule(self.family.head)
            head.weight.copy_(weight.view_as(head.weight))
            head.bias.copy_(bias)

    def trains_head_alone(self) -> bool:
        """Whether all depths but the head stay frozen."""
        return not any(self.rates[:-1])

    def depths(self) -> dict[str, int]:
        """The depth of every parameter and buffer, by name."""
        return parameter_depths(self.model, self.stages)

    def frozen_keys(self) -> set[str]:
        """The parameters and buffers of depths that are never trained."""
        return {name for name, depth in self.depths().items() if self.rates[depth] is None}

    def frozen_epochs(self) -> float:
        """The number of epochs with a frozen stem; infinity if it is never trained."""
        return self.rates[0].start if self.rates[0] else math.inf

    def phase_starts(self, epochs: int) -> list[int]:
        """The first epoch of each phase in a run of so many epochs: 0, and wherever a depth starts to be trained."""
        return sorted({0} | {rate.start for rate in self.rates if rate and rate.start < epochs})

    def has_batchnorm(self, depth: int) -> bool:
        """Whether there is a BatchNorm at a depth."""
        modules = dict(self.model.named_modules())
        found = (modules[path] for path in self.stages[depth] if path in modules)
        return any(isinstance(module, BATCHNORM) for top in found for module in top.modules())

    def trains_batchnorm(self) -> bool:
        """Whether any BatchNorm is ever trained, and so depends on its batches."""
        return any(rate and self.has_batchnorm(depth) for depth, rate in enumerate(self.rates))

    def set_phase(self, epoch: int) -> None:
        """Put the depths that an epoch trains into training mode, all others into evaluation mode without gradients.

        Evaluation mode keeps the statistics of a frozen BatchNorm, which would change in training mode although its
        parameters do not, and turns off dropout and stochastic depth.
        """
        self.model.train()
        parameters, modules = dict(self.model.named_parameters()), dict(self.model.named_modules())
        for paths, rate in zip(self.stages, self.rates, strict=True):
            trained = rate is not None and epoch >= rate.start
            for path in paths:
                if path in parameters:
                    parameters[path].requires_grad_(trained)
                else:
                    modules[path].requires_grad_(trained).train(trained)

    def no_decay(self, name: str) -> bool:
        """Whether a parameter has no weight decay: it is a vector or scalar, or named in the family's `no_decay`."""
        spared = set(name.split(".")) & set(self.family.no_decay)
        return self.model.get_parameter(name).ndim < 2 or bool(spared)

    def to(self, accelerator: Accelerator, channels_last: bool, sync_bn: bool = False) -> None:
        """Move the model to the device and memory format; with `sync_bn`, convert BatchNorm to SyncBatchNorm."""
        if sync_bn:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(accelerator.device, memory_format=memory_format)


def wrong_size(side: int, error: Exception) -> UserError:
    """The error for images whose side in pixels a network does not take; `error` is torch's."""
    return UserError(f"--image-size {side}: this network does not take it ({str(error).splitlines()[0]}).")


def build(recipe: Recipe, classes: int, empty: bool = False, restored: Preprocess | None = None) -> Network:
    """The network of a recipe in its first phase; see `surgery.build`."""
    model, preprocess, stages = surgery.build(recipe.net, classes, empty, restored)
    network = Network(model, preprocess, stages, recipes.rates(recipe, len(stages)), find(recipe.net.model))
    network.set_phase(epoch=0)
    return network
