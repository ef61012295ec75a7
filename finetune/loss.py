"""The loss of one batch, per image."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.errors import UserError
from finetune.recipe import Training


def cross_entropy(
    outputs: Tensor | tuple[Tensor, ...],
    labels: Tensor,
    others: Tensor | None,
    mix: Tensor | None,
    label_smoothing: float,
    aux_weight: float,
    class_weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """The main head's logits (N, classes) and each image's loss (N,), in nats.

    A net with auxiliary heads gives a tuple in training, the main logits first; each auxiliary loss is added with
    `aux_weight` (Szegedy et al. 2015, 2016). Of a mixed image, `mix` (N,) is the share that is of class `labels`; the
    rest is of class `others`. An image's loss is weighted by its class's weight, in `class_weights` (classes,).
    """

    def of_class(logits: Tensor, labels: Tensor) -> Tensor:
        # Not by F.cross_entropy's `weight`: it weights the smoothed share of each class by that class's own weight, so
        # that every image pulls towards the rare classes.
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)  # (N,)
        return class_weights[labels] * losses

    def each(logits: Tensor) -> Tensor:
        losses = of_class(logits, labels)  # (N,)
        return losses if others is None else mix * losses + (1 - mix) * of_class(logits, others)

    logits, *auxiliary = (outputs,) if isinstance(outputs, Tensor) else outputs
    losses = each(logits)
    for other in auxiliary:
        losses = losses + aux_weight * each(other)
    return logits, losses


def make_criterion(
    training: Training, labels: list[int], classes: int, aux_weight: float, device: torch.device
) -> Callable[..., tuple[Tensor, Tensor]]:
    """`cross_entropy` of (outputs, labels, others, mix), with the settings of a training on images of these labels."""
    return partial(
        cross_entropy,
        label_smoothing=training.label_smoothing,
        aux_weight=aux_weight,
        class_weights=rarity(labels, classes, training.class_weights).to(device),
    )


def check_finite(value: float, epoch: int) -> None:
    """A `UserError` where a loss of this epoch, counted from 0, is not finite."""
    if not math.isfinite(value):
        raise UserError(f"the loss is {value} in epoch {epoch + 1}. Lower --lr, or set --clip-norm 1.")


def rarity(labels: list[int], classes: int, on: bool) -> Tensor:
    """A weight per class (classes,), inversely as its number of images, with mean 1 over the images; if not on, 1."""
    counts = torch.bincount(torch.tensor(labels), minlength=classes)
    return len(labels) / (classes * counts) if on else torch.ones(classes)
