"""The loss of one batch, per image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    outputs: Tensor | tuple[Tensor, ...], labels: Tensor, label_smoothing: float, aux_weight: float
) -> tuple[Tensor, Tensor]:
    """The main head's logits (N, classes) and each image's loss (N,), in nats.

    A net with auxiliary heads gives a tuple in training, the main logits first; each auxiliary loss is added with
    `aux_weight` (Szegedy et al. 2015, 2016).
    """
    logits, *auxiliary = (outputs,) if isinstance(outputs, Tensor) else outputs
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)  # (N,)
    for other in auxiliary:
        losses = losses + aux_weight * F.cross_entropy(other, labels, reduction="none", label_smoothing=label_smoothing)
    return logits, losses
