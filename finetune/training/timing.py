"""Estimate a run's duration from a few timed images, for the plan and `--minutes`."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from finetune.config.settings import Recipe
from finetune.errors import UserError
from finetune.models.network import Network
from finetune.runtime import devices
from finetune.training import head_solver
from finetune.training.interpolation import ALPHAS
from finetune.training.state import State

IMAGES = 8  # that are timed, at most
ROWS = 2048  # of the solver's features that are timed, at most
CALLS, ENOUGH = 3, 10.0  # calls that are timed, and seconds after which no further call is
MARGIN = 0.15  # of a budget, for what is not timed: the optimizer, checkpoints, pictures


@dataclass(frozen=True)
class Estimate:
    """Seconds of the parts of a run, on all its processes together."""

    head: float
    """To solve the head; 0 where it is not solved."""
    epoch: float
    """For one epoch that trains as many depths as any."""
    end: float
    """To evaluate at the end."""


def measure(
    recipe: Recipe, network: Network, loaders: dict[str, DataLoader], accelerator: Accelerator, views: int
) -> Estimate:
    """Time reading, a forward pass, a training step and a step of the head's solver on a few images. Collective.

    The head is solved on so many `views` of each image; 0 where it is not solved. The network stays as it is; one on
    the meta device is timed with random weights. What the caches save is not counted.
    """
    samples, sampler, device = loaders["train"].dataset, loaders["train"].batch_sampler, accelerator.device
    sampler.start_at(0)
    micro_batch = recipe.training.batch_size // (accelerator.num_processes * recipe.training.loaded_micro_batches)
    count = max(2, min(IMAGES, micro_batch))  # BatchNorm needs two
    draws = next(iter(sampler))[:count]
    read = _seconds(lambda: [samples[draw] for draw in draws], device) / len(draws)

    network.set_phase(max(recipe.training.epochs - 1, 0))  # when most is trained
    model = _copy(network, accelerator, recipe.run.channels_last)
    network.set_phase(epoch=0)
    side, dtype = network.preprocess.crop, next(model.parameters()).dtype
    images = torch.rand(count, len(network.preprocess.mean), side, side, device=device, dtype=dtype)
    if recipe.run.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with accelerator.autocast():
            outputs = model(images)
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        logits.float().sum().backward()

    def evaluation() -> None:
        with torch.inference_mode(), accelerator.autocast():
            model.eval()(images)

    train, evaluate = _seconds(step, device) / count, _seconds(evaluation, device) / count
    workers = loaders["train"].num_workers
    slowest = torch.tensor([read, evaluate, train], device=device)
    read, evaluate, train = (accelerator.gather(slowest[None]).max(0).values / accelerator.num_processes).tolist()

    def seconds(images: int, compute: float) -> float:
        return images * (max(read / workers, compute) if workers else read + compute)

    counts = {name: len(loader.dataset) for name, loader in loaders.items()}
    val = seconds(counts["val"], evaluate)
    mixtures = len(ALPHAS) if recipe.training.interpolate and views else 0
    head = 0.0
    if views:
        solving = _solving(recipe.training.l2, network, counts["train"], views, device)
        head = seconds(counts["train"] * views, evaluate) + val + solving
    return Estimate(
        head=head,
        epoch=seconds(counts["train"], train) + val,
        end=seconds(counts.get("test", 0), evaluate) + val * mixtures,
    )


def _solving(l2: float | None, network: Network, images: int, views: int, device: torch.device) -> float:
    """Seconds that the head's solver takes for so many views of each image, about: it runs on one process."""
    classes, features = network.head.weight.shape[:2]
    heads = 1 if l2 else head_solver.fold_count(images) + 1
    x = torch.rand(min(ROWS, views * images), features, device=device)
    weights = torch.rand(features, heads * classes, device=device) / features

    def evaluation() -> None:
        probabilities = (x @ weights).view(len(x), heads, classes).softmax(2)
        probabilities.flatten(1).T @ x

    return head_solver.EVALUATIONS * views * images / len(x) * _seconds(evaluation, device)


def fit(recipe: Recipe, estimate: Estimate, spent: float, before: int | None) -> Recipe:
    """The recipe with as many epochs as `--minutes` leaves time for, `spent` seconds after the start.

    There may be none: the solved head is the result then. A resumed run keeps its number of epochs, `before`. Raises
    `UserError` where not even the head fits, or, where none is solved, one epoch.
    """
    training = recipe.training
    if training.minutes is None:
        return recipe
    left = 60 * training.minutes * (1 - MARGIN) - spent - estimate.end - estimate.head
    epochs = min(training.epochs, max(0, math.floor(left / estimate.epoch))) if before is None else before
    if before is None and (left < 0 or not (epochs or estimate.head)):
        part, seconds = ("the head alone", 0.0) if estimate.head else ("one epoch", estimate.epoch)
        need = (spent + estimate.end + estimate.head + seconds) / (1 - MARGIN) / 60
        raise UserError(
            f"--minutes {training.minutes:g} is too short: {part} takes about {need:.2g} minutes here, with start and "
            f"evaluation. Give at least that, or a smaller --image-size or --model."
        )
    return replace(recipe, training=replace(training, epochs=epochs))


def is_over(minutes: float | None, state: State, accelerator: Accelerator) -> bool:
    """Whether another epoch as long as the last would exceed `--minutes`; the same on all processes. Collective."""
    if minutes is None or not state.epoch:
        return False
    return devices.from_main(accelerator, lambda: state.run_clock.seconds + state.history[-1]["seconds"] > 60 * minutes)


def _copy(network: Network, accelerator: Accelerator, channels_last: bool) -> torch.nn.Module:
    """A copy of the network's model on the device, with random weights if it is on the meta device."""
    model = copy.deepcopy(network.model)
    if next(model.parameters()).is_meta:
        model.to_empty(device=accelerator.device)
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.normal_(std=0.02) if tensor.is_floating_point() else tensor.zero_()
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return model.to(accelerator.device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few calls: the first one warms up, and other load may disturb any."""
    times: list[float] = []
    while len(times) < CALLS and sum(times) < ENOUGH:
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
