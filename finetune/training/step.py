"""One optimizer step, for training and for the learning-rate range test."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import release_memory
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader

from finetune.config.settings import Recipe
from finetune.data.loader import Batch
from finetune.data.transforms import to_input
from finetune.errors import UserError, is_out_of_memory
from finetune.models.architectures import Preprocess
from finetune.models.network import Network
from finetune.runtime import devices
from finetune.training import dropout, ema, loss, param_groups


class Feed(NamedTuple):
    """A model and the loader of its input.

    Either the whole model and images, or the part behind the frozen one and cached activations.
    """

    net: nn.Module
    loader: DataLoader
    preprocess: Preprocess | None
    """The normalisation of images (see `to_input`); None for activations."""


class StepResult(NamedTuple):
    """The measurements of one step, on this process."""

    sums: Tensor
    """(3,): the loss summed over the images, correct predictions, images."""
    gradient_norm: Tensor
    """(): L2 norm of the global batch's gradient, before clipping."""
    accumulate: int
    """Micro-batches that the step was computed in."""


class TrainingStep:
    """The forward and backward passes of a global batch's micro-batches, then one step of the optimizer."""

    def __init__(
        self,
        recipe: Recipe,
        network: Network,
        optimizer: torch.optim.Optimizer,
        labels: list[int],
        classes: int,
        accelerator: Accelerator,
    ) -> None:
        """`labels` are the training images': `--class-weights` counts them."""
        self.training, self.channels_last = recipe.training, recipe.run.channels_last
        self.network, self.optimizer, self.accelerator = network, optimizer, accelerator
        aux_weight, device = network.family.aux_weight, accelerator.device
        self.criterion = loss.make_criterion(recipe.training, labels, classes, aux_weight, device)
        self.masks = dropout.Masks(network.model, recipe.run.seed)

    def __call__(
        self, feed: Feed, micro_batches: Iterable[Batch], step: int, lr: float, accumulate: int = 1
    ) -> StepResult:
        """Take step number `step` (from 0) on `--accumulate` micro-batches. Collective.

        `--accumulate auto` gives one, which is split into `accumulate` micro-batches, or more if memory runs out. `lr`
        is the learning rate of a depth of scale 1.
        """
        if self.training.accumulate == "auto":
            (batch,) = micro_batches
            sums, accumulate = self._fit_memory(feed, batch, step, accumulate)
        else:
            sums, accumulate = self._gradients(feed, micro_batches, step), self.training.accumulate
        norm = self._clip_gradients()
        param_groups.set_rates(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad()
        ema.update(self.network.average, self.network.model)
        return StepResult(sums, norm, accumulate)

    def _gradients(self, feed: Feed, micro_batches: Iterable[Batch], step: int) -> Tensor:
        """Add up the gradients of a global batch; the sums of `StepResult`.

        The sample weights of a global batch add up to 1 over all processes. DDP averages their gradients, hence the
        factor of `num_processes`.
        """
        accelerator, device = self.accelerator, self.accelerator.device
        sums = zero_sums(device)
        for number, batch in enumerate(micro_batches, 1):
            x = to_input(batch.images, feed.preprocess, device, self.channels_last)  # (N, C, H, W)
            labels, weights, labels_b, lam = batch.targets(device)  # (N,)
            self.masks.at(step, batch.positions.to(device, non_blocking=True), feed.loader.batch_sampler.largest)
            last = number == self.training.loaded_micro_batches
            with nullcontext() if last else accelerator.no_sync(feed.net):
                logits, losses = self.criterion(feed.net(x), labels, labels_b, lam)  # (N, classes), (N,)
                accelerator.backward((losses * weights).sum() * accelerator.num_processes)
            own = weights > 0  # an image of weight 0 only fills a process's empty batch
            correct = logits.argmax(1) == labels
            sums += torch.stack([losses.detach() * own, correct * own, own]).sum(1, dtype=sums.dtype)
        return sums

    def _fit_memory(self, feed: Feed, batch: Batch, step: int, accumulate: int) -> tuple[Tensor, int]:
        """`_gradients` in `accumulate` micro-batches, doubled until memory suffices on all processes. Collective.

        Nothing but gradients has changed where it does not, and the whole batch begins anew. Processes exchange their
        gradients when all have theirs: under DDP, which begins in the backward pass, they would wait for the one that
        ran out of memory. Raises `UserError` where single images are too much.
        """
        largest = -(-feed.loader.batch_sampler.largest // self.accelerator.num_processes)
        while True:
            sums = self._try_gradients(feed, batch.split(accumulate), step)
            failed = devices.anywhere(self.accelerator, sums is None)
            if sums is not None and not failed:
                devices.average_gradients(self.accelerator, self.network.model.parameters())
                return sums, accumulate
            self.optimizer.zero_grad()
            release_memory()
            if accumulate >= largest:
                raise UserError(
                    "out of memory with a single image at a time (--accumulate auto). Take a smaller --image-size or "
                    "--model, or --precision bf16 or fp16."
                )
            accumulate = min(2 * accumulate, largest)
            self.accelerator.print(f"Out of memory in step {step + 1}: from now on {accumulate} micro-batches a step.")

    def _try_gradients(self, feed: Feed, micro_batches: list[Batch], step: int) -> Tensor | None:
        """`_gradients`, or None where memory runs out. The error, which holds the activations, is freed on return."""
        try:
            return self._gradients(feed, micro_batches, step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _clip_gradients(self) -> Tensor:
        """Scale the gradients down to `--clip-norm`, if it is set; their L2 norm before that, ()."""
        parameters = list(self.network.model.parameters())
        if self.training.clip_norm:
            return self.accelerator.clip_grad_norm_(parameters, self.training.clip_norm)
        self.accelerator.unscale_gradients()  # fp16's
        return get_total_norm([value.grad for value in parameters if value.grad is not None])


def wrapped(net: nn.Module, recipe: Recipe, accelerator: Accelerator) -> nn.Module:
    """A network prepared for the steps of one phase of training; see `devices.wrap`. Collective."""
    return devices.wrap(accelerator, net, recipe.run.compile, ddp=recipe.training.accumulate != "auto")


def zero_sums(device: torch.device) -> Tensor:
    """Zeros (3,), in float64 where the device is sure to support it: float32 stops counting at 2^24."""
    return torch.zeros(3, dtype=torch.float64 if device.type in ("cpu", "cuda") else torch.float32, device=device)
