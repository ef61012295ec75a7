"""The learning-rate range test: raise the rate with every update, watch the loss, suggest a rate (Smith 2015)."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from finetune import archs, charts, freezing, groups, loss, terminal
from finetune.archs import Preprocess
from finetune.errors import UserError
from finetune.recipe import Rate, Recipe
from finetune.samples import to_input

LOWEST, HIGHEST, UPDATES = 1e-6, 10.0, 160
SMOOTHING = 0.9  # of the loss, which is that of one batch at a time
DIVERGED = 4.0  # times the lowest loss: here the test ends


def run(
    recipe: Recipe,
    output: Path,
    model: nn.Module,
    stages: list[list[str]],
    rates: list[Rate | None],
    preprocess: Preprocess,
    loaders: dict[str, DataLoader],
    classes: list[str],
    accelerator: Accelerator,
    console: Console,
) -> int:
    """Run the test, draw plots/lr_find.png and print the flag to use; the exit code."""
    tried, losses = test(recipe, model, stages, rates, preprocess, loaders["train"], len(classes), accelerator, console)
    found = suggest(tried, losses)
    if accelerator.is_main_process:
        charts.rate_test(output / "plots" / "lr_find.png", tried, losses, found, recipe.training.lr)
    console.print(
        f"\nThe loss fell steadily up to a rate of about {found:.1e} (the recipe's is {recipe.training.lr:.1e}). "
        f"To train with it:\n    --lr {found:.1e}\nLook at {output / 'plots' / 'lr_find.png'}",
        soft_wrap=True,
    )
    return 0


def test(
    recipe: Recipe,
    model: nn.Module,
    stages: list[list[str]],
    rates: list[Rate | None],
    preprocess: Preprocess,
    loader: DataLoader,
    classes: int,
    accelerator: Accelerator,
    console: Console,
) -> tuple[list[float], list[float]]:
    """The rates of the head that were tried and the training loss at each, smoothed; the model is left as it was.

    The rate rises by the same factor with every update, from `LOWEST` to `HIGHEST`, or until the loss has grown to
    `DIVERGED` times its lowest. What the recipe freezes at its start is frozen. All processes take part.
    """
    training, device = recipe.training, accelerator.device
    layout = torch.channels_last if recipe.run.channels_last else torch.contiguous_format
    model.to(device, memory_format=layout)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    freezing.set_phase(model, stages, rates, epoch=0)
    family = archs.find(recipe.net.model)
    optimizer = accelerator.prepare(groups.make_optimizer(model, stages, rates, training, family, accelerator.scaler))
    wrapped = freezing.wrap(accelerator, model, recipe.run.compile)
    criterion = loss.make_criterion(training, loader.dataset.split.labels, classes, family.aux_weight, device)
    tried: list[float] = []
    smoothed: list[float] = []
    mean = 0.0
    parts = terminal.progress(Parts(loader, UPDATES * training.accumulate), "range test", console)
    for update in range(UPDATES):
        rate = LOWEST * (HIGHEST / LOWEST) ** (update / (UPDATES - 1))
        total = torch.zeros((), device=device)
        for batch in itertools.islice(parts, training.accumulate):
            x = to_input(batch.images, preprocess, device, recipe.run.channels_last)  # (N, C, H, W)
            labels, shares, others, mix = batch.targets(device)  # (N,)
            _, each = criterion(wrapped(x), labels, others, mix)  # (N,)
            accelerator.backward((each * shares).sum() * accelerator.num_processes)
            total += (each.detach() * shares).sum()
        if training.clip_norm:
            accelerator.clip_grad_norm_(model.parameters(), training.clip_norm)
        groups.set_rates(optimizer, rate)
        optimizer.step()
        optimizer.zero_grad()
        mean = SMOOTHING * mean + (1 - SMOOTHING) * accelerator.reduce(total).item()
        smoothed.append(mean / (1 - SMOOTHING ** (update + 1)))
        tried.append(rate)
        if not math.isfinite(mean) or smoothed[-1] > DIVERGED * min(smoothed):
            break
    parts.close()
    model.load_state_dict(before)
    return tried, smoothed


class Parts:
    """The batches of as many epochs as it takes, and how many that are."""

    def __init__(self, loader: DataLoader, count: int) -> None:
        self.loader, self.count = loader, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        for epoch in itertools.count():
            self.loader.batch_sampler.start_at(epoch, 0)
            yield from self.loader


def suggest(tried: list[float], losses: list[float]) -> float:
    """The rate two thirds along the longest fall of the loss: fastai's `valley` (Howard & Gugger 2020).

    Raises `UserError` where the loss never falls.
    """
    kept = [(rate, value) for rate, value in zip(tried, losses, strict=True) if math.isfinite(value)]
    start, end = _longest_fall([value for _, value in kept])
    if end - start < 3:
        raise UserError(
            "the range test saw no fall of the loss at any rate: are the labels right, is anything trained?"
        )
    at = start + (end - start) * 2 // 3
    return float(f"{kept[at][0]:.1e}")


def _longest_fall(values: list[float]) -> tuple[int, int]:
    """Where the longest falling subsequence begins and ends."""
    length, came_from = [1] * len(values), list(range(len(values)))
    for k in range(1, len(values)):
        for j in range(k):
            if values[j] > values[k] and length[j] + 1 >= length[k]:  # of two as long, the later one
                length[k], came_from[k] = length[j] + 1, j
    if not values:
        return 0, 0
    end = start = max(range(len(values)), key=length.__getitem__)
    while came_from[start] != start:
        start = came_from[start]
    return start, end
