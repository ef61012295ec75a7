"""The network of a run: the model, its transform, its depths and their rates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from finetune import recipes
from finetune.config.settings import Rate, Recipe
from finetune.errors import UserError
from finetune.models import gradient_checkpointing, surgery
from finetune.models.architectures import Family, Preprocess, find, parameter_depths

BATCHNORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
NORMALISATION = (*BATCHNORM, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
MANY_IMAGES, LARGE_BATCH = 20_000, 32  # from which on BatchNorm takes statistics of its own, by `--batchnorm auto`


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
    keep_batchnorm: bool = False
    """Whether BatchNorm keeps its pretrained statistics where its weights are trained. A new head's never does."""
    batchnorm_reason: str = ""
    """Why it does or does not."""

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

    @torch.no_grad()
    def divide_logits(self, temperature: float) -> None:
        """Divide the evaluated model's logits by a temperature, in the weights of its last layer."""
        auxiliary = tuple(path.split(".")[0] for path in self.family.aux)
        last, depths = None, self.depths()
        for name, module in self.evaluated.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and depths[f"{name}.weight"] == len(self.stages) - 1:
                last = last if name.split(".")[0] in auxiliary else module
        for parameter in last.parameters():
            parameter.div_(temperature)

    def trains_head_alone(self) -> bool:
        """Whether all depths but the head stay frozen."""
        return not any(self.rates[:-1])

    def depths(self) -> dict[str, int]:
        """The depth of every parameter and buffer, by name."""
        return parameter_depths(self.model, self.stages)

    def frozen_keys(self) -> set[str]:
        """The parameters and buffers that never change: of depths that are never trained. A head may be solved."""
        head = len(self.stages) - 1
        return {name for name, depth in self.depths().items() if self.rates[depth] is None and depth < head}

    def frozen_epochs(self) -> float:
        """The number of epochs with a frozen stem; infinity if it is never trained."""
        return self.rates[0].start if self.rates[0] else math.inf

    def phase_starts(self, epochs: int) -> list[int]:
        """The first epoch of each phase in a run of so many epochs: 0, and wherever a depth starts to be trained."""
        return sorted({0} | {rate.start for rate in self.rates if rate and rate.start < epochs})

    def is_normalised(self) -> bool:
        """Whether there are normalisation layers, of any kind."""
        return any(isinstance(module, NORMALISATION) for module in self.model.modules())

    def has_batchnorm(self, depth: int) -> bool:
        """Whether there is a BatchNorm at a depth."""
        modules = dict(self.model.named_modules())
        found = (modules[path] for path in self.stages[depth] if path in modules)
        return any(isinstance(module, BATCHNORM) for top in found for module in top.modules())

    def trains_batchnorm(self) -> bool:
        """Whether any BatchNorm ever takes statistics of its batches."""
        return "trained" in map(self.batchnorm, range(len(self.stages)))

    def batchnorm(self, depth: int) -> str:
        """What becomes of the BatchNorm at a depth.

        `kept`: frozen. `weights`: its weights are trained, in evaluation mode: its statistics stay. `trained`. Empty
        where there is none.
        """
        if not self.has_batchnorm(depth):
            return ""
        if self.rates[depth] is None:
            return "kept"
        return "weights" if self.keep_batchnorm and depth < len(self.stages) - 1 else "trained"

    def set_phase(self, epoch: int) -> None:
        """Put the depths that an epoch trains into training mode, all others into evaluation mode without gradients.

        Evaluation mode keeps the statistics of a frozen BatchNorm, which would change in training mode although its
        parameters do not, and turns off dropout and stochastic depth. With `keep_batchnorm`, a BatchNorm whose weights
        are trained is in evaluation mode too.
        """
        self.model.train()
        parameters, modules = dict(self.model.named_parameters()), dict(self.model.named_modules())
        for depth, (paths, rate) in enumerate(zip(self.stages, self.rates, strict=True)):
            trained = rate is not None and epoch >= rate.start
            for path in paths:
                if path in parameters:
                    parameters[path].requires_grad_(trained)
                else:
                    modules[path].requires_grad_(trained).train(trained)
                    if self.batchnorm(depth) == "weights":
                        for module in modules[path].modules():
                            module.train(module.training and not isinstance(module, BATCHNORM))

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


def build(
    recipe: Recipe,
    classes: int,
    images: int = 0,
    processes: int = 1,
    empty: bool = False,
    restored: Preprocess | None = None,
    keep_batchnorm: bool | None = None,
) -> Network:
    """The network of a recipe in its first phase; see `surgery.build`.

    `--batchnorm auto` depends on the number of training images and of processes. A resumed run has decided it:
    `keep_batchnorm`.
    """
    model, preprocess, stages = surgery.build(recipe.net, classes, empty, restored)
    if recipe.images.fit and not restored:
        preprocess = replace(preprocess, fit=recipe.images.fit)
    network = Network(model, preprocess, stages, recipes.rates(recipe, len(stages)), find(recipe.net.model))
    if keep_batchnorm is None:
        network.keep_batchnorm, network.batchnorm_reason = keeps_batchnorm(recipe, images, processes)
    else:
        network.keep_batchnorm, network.batchnorm_reason = keep_batchnorm, "as the run began"
    network.set_phase(epoch=0)
    if recipe.run.gradient_checkpointing:
        checkpoint_blocks(network, recipe)
    if recipe.training.accumulate == "auto" and network.trains_batchnorm():
        # Its statistics would be those of micro-batches whose size the free memory decides.
        raise UserError(
            "--accumulate auto needs a result that does not depend on the micro-batches, and BatchNorm is trained "
            f"here ({network.batchnorm_reason}). Use --batchnorm keep, if the weights and the head allow it, or a "
            "number of micro-batches."
        )
    return network


def checkpoint_blocks(network: Network, recipe: Recipe) -> None:
    """Enable gradient checkpointing. Raises `UserError` where it would have no effect, and with `--compile`."""
    blocks = gradient_checkpointing.blocks(network.model, network.stages)
    if not blocks:
        raise UserError(
            f"--gradient-checkpointing computes blocks again, and {recipe.net.model} has none. Use --accumulate or a "
            f"smaller --image-size instead."
        )
    if recipe.run.compile:
        raise UserError("--gradient-checkpointing and --compile: choose one; torch.compile saves activations itself.")
    gradient_checkpointing.enable(blocks)


def keeps_batchnorm(recipe: Recipe, images: int, processes: int) -> tuple[bool, str]:
    """Whether BatchNorm keeps its pretrained statistics in training (`--batchnorm`), and why.

    `images` are those of the training split.
    """
    training = recipe.training
    if recipe.net.weights == "none":
        return False, "random weights have no statistics to keep"
    if training.batchnorm != "auto":
        return training.batchnorm == "keep", f"--batchnorm {training.batchnorm}"
    micro_batch = training.batch_size // (processes * training.loaded_micro_batches)
    if images >= MANY_IMAGES and micro_batch >= LARGE_BATCH:
        return False, f"{images} images, {micro_batch} at a time, are enough for statistics of their own"
    if images < MANY_IMAGES:
        return True, f"{images} images are too few for statistics of their own"
    return True, f"{micro_batch} images at a time are too few for statistics of their own"
