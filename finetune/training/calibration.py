"""Temperature scaling (Guo et al. 2017): one number that makes a model's probabilities agree with its accuracy."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST, HIGHEST = 0.05, 20.0
STEPS = 100


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the lowest cross-entropy of logits / temperature, for logits (N, classes), labels (N,).

    The labels are smoothed by 1 / (N + 2), as by Platt (1999): where all images are right, the best temperature for
    hard labels would be 0.
    """
    logits, labels = logits.double().clone(), labels.clone()  # those of inference mode have no gradients
    smoothing = 1 / (len(labels) + 2)
    inverse = torch.ones((), dtype=torch.float64, requires_grad=True)  # in which the loss is convex
    optimizer = torch.optim.LBFGS([inverse], max_iter=STEPS, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits * inverse, labels, label_smoothing=smoothing)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    found = inverse.item()
    return min(max(1 / found, LOWEST), HIGHEST) if math.isfinite(found) and found > 0 else HIGHEST
