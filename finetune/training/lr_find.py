"""The learning-rate range test (Smith 2015): raise the rate with every step and suggest one from the loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from finetune.config.settings import Recipe
from finetune.errors import UserError
from finetune.models.network import Network
from finetune.training.param_groups import make_optimizer
from finetune.training.step import Feed, TrainingStep, wrapped

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 160
SMOOTHING = 0.9  # of the loss of single batches
DIVERGED = 4.0  # the test ends at this multiple of the lowest loss


def range_test(
    recipe: Recipe, network: Network, loader: DataLoader, classes: int, accelerator: Accelerator
) -> tuple[list[float], list[float]]:
    """The head's learning rates that were tried, and the smoothed training loss at each. Collective.

    The rate rises by a constant factor from `LOWEST` to `HIGHEST`, or until the loss has grown to `DIVERGED` times its
    minimum. Depths that the recipe freezes in its first epoch are frozen. The model's weights are restored.
    """
    model, count = network.model, recipe.training.loaded_micro_batches
    network.to(accelerator, recipe.run.channels_last, recipe.run.sync_bn)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network.set_phase(epoch=0)
    optimizer = accelerator.prepare(make_optimizer(network, recipe.training, accelerator.scaler))
    labels = loader.dataset.split.labels
    training_step = TrainingStep(recipe, network, optimizer, labels, classes, accelerator)
    feed = Feed(wrapped(model, recipe, accelerator), loader, network.preprocess)
    tried: list[float] = []
    smoothed: list[float] = []
    mean, batches, accumulate = 0.0, _endless(loader), 1
    for step in range(STEPS):
        lr = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
        result = training_step(feed, itertools.islice(batches, count), step, lr, accumulate)
        accumulate = result.accumulate
        loss, _, images = accelerator.reduce(result.sums).tolist()
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss / images
        smoothed.append(mean / (1 - SMOOTHING ** (step + 1)))
        tried.append(lr)
        if not math.isfinite(mean) or smoothed[-1] > DIVERGED * min(smoothed):
            break
    model.load_state_dict(before)
    return tried, smoothed


def _endless(loader: DataLoader) -> Iterator[Any]:
    """The batches of epoch after epoch."""
    for epoch in itertools.count():
        loader.batch_sampler.start_at(epoch)
        yield from loader


def suggest(tried: list[float], losses: list[float]) -> float:
    """The rate two thirds along the longest fall of the loss, after fastai's `valley` (Howard & Gugger 2020).

    Raises `UserError` where the loss never falls.
    """
    finite = [(rate, loss) for rate, loss in zip(tried, losses, strict=True) if math.isfinite(loss)]
    start, end = _longest_fall([loss for _, loss in finite])
    if end - start < 3:
        raise UserError("the range test: the loss fell at no learning rate. Check the labels and what is trained.")
    at = start + (end - start) * 2 // 3
    return float(f"{finite[at][0]:.1e}")


def _longest_fall(values: list[float]) -> tuple[int, int]:
    """Where the longest falling subsequence begins and ends."""
    length, previous = [1] * len(values), list(range(len(values)))
    for k in range(1, len(values)):
        for j in range(k):
            if values[j] > values[k] and length[j] + 1 >= length[k]:  # of two as long, the later one
                length[k], previous[k] = length[j] + 1, j
    if not values:
        return 0, 0
    end = start = max(range(len(values)), key=length.__getitem__)
    while previous[start] != start:
        start = previous[start]
    return start, end
