"""The loss of one micro-batch, per image."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.config.settings import Training
from finetune.errors import UserError


def cross_entropy(
    outputs: Tensor | tuple[Tensor, ...],
    labels: Tensor,
    labels_b: Tensor | None,
    lam: Tensor | None,
    label_smoothing: float,
    aux_weight: float,
    class_weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """The main head's logits (N, classes) and each image's loss (N,), in nats.

    A network with auxiliary heads returns a tuple in training, the main logits first. Each auxiliary loss is added with
    `aux_weight` (Szegedy et al. 2015, 2016). The fraction `lam` (N,) of a mixed image is of class `labels`, the rest of
    class `labels_b`. Each label's loss is multiplied by its class's weight, from `class_weights` (classes,).
    """

    def of_class(logits: Tensor, labels: Tensor) -> Tensor:
        # Not by F.cross_entropy's `weight`: with label smoothing it weights each class's share of the target by that
        # class's own weight, so that every image pulls towards the rare classes.
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)  # (N,)
        return class_weights[labels] * losses

    def of_head(logits: Tensor) -> Tensor:
        losses = of_class(logits, labels)  # (N,)
        return losses if labels_b is None else lam * losses + (1 - lam) * of_class(logits, labels_b)

    logits, *auxiliary = (outputs,) if isinstance(outputs, Tensor) else outputs
    losses = of_head(logits)
    for other in auxiliary:
        losses = losses + aux_weight * of_head(other)
    return logits, losses


def make_criterion(
    training: Training, labels: list[int], classes: int, aux_weight: float, device: torch.device
) -> Callable[..., tuple[Tensor, Tensor]]:
    """`cross_entropy` as a function of (outputs, labels, labels_b, lam), with the settings of a training.

    `labels` are the training split's.
    """
    return partial(
        cross_entropy,
        label_smoothing=training.label_smoothing,
        aux_weight=aux_weight,
        class_weights=class_weights(labels, classes, training.class_weights).to(device),
    )


def class_weights(labels: list[int], classes: int, balanced: bool) -> Tensor:
    """The weight of each class (classes,): 1, or if `balanced`, inverse to its images, with mean 1 over all images."""
    counts = torch.bincount(torch.tensor(labels), minlength=classes)
    return len(labels) / (classes * counts) if balanced else torch.ones(classes)


def check_finite(value: float, epoch: int) -> None:
    """Raise `UserError` where a loss of an epoch (from 0) is not finite."""
    if not math.isfinite(value):
        raise UserError(f"the loss is {value} in epoch {epoch + 1}. Lower --lr, or set --clip-norm 1.")
