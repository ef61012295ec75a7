"""Batches, and the order in which they come: a pure function of (seed, epoch), whatever the number of processes."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from finetune.archs import Preprocess
from finetune.errors import UserError
from finetune.hardware import worker_count
from finetune.imagesets import Split
from finetune.recipe import Recipe
from finetune.samples import Draw, Samples, evaluation_transform, mixed, mixing, training_transform


class Batch(NamedTuple):
    """What a loader yields."""

    images: Tensor
    """(N, C, H, W), uint8, or float32 in [0, 1] from arrays of floats; or (N, …), activations of a frozen part."""
    labels: Tensor
    """(N,), int64."""
    shares: Tensor
    """(N,), float32; see `Draw.share`."""
    indices: Tensor
    """(N,), int64: positions in the split."""
    places: Tensor
    """(N,), int64: positions in the global batch."""
    others: Tensor | None
    """(N,), int64: the labels of what is mixed in; None where nothing ever is."""
    mix: Tensor | None
    """(N,), float32: the share of the image that is of its own label."""

    def targets(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Labels, shares, others and mix on the device."""
        held = (self.labels, self.shares, self.others, self.mix)
        return tuple(t if t is None else t.to(device, non_blocking=True) for t in held)


class GlobalBatches(Sampler[list[Draw]]):
    """This process's part of each global batch.

    Every process cuts the same order into the same global batches and takes every `processes`-th image of each. A
    global batch smaller than the number of processes leaves some without an image: they get one of share 0, since all
    must take part in the exchange of gradients.

    Say `start_at` before iterating. With `seed=None` the order is that of the split. With `parts`, each global batch
    comes in so many, for gradients that are accumulated. With `weights` (one per image), images are drawn with
    replacement. With `pairs`, a last batch of one image joins the one before; whether it does depends on neither
    processes nor parts, so that any number of them can go on with a run. In the first `frozen` epochs, `views` views of
    each image take turns, if `views` is not 0.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int | None,
        process: int = 0,
        processes: int = 1,
        parts: int = 1,
        weights: Tensor | None = None,
        pairs: bool = False,
        views: int = 0,
        frozen: float = 0,
    ) -> None:
        self.count, self.seed, self.weights, self.parts = count, seed, weights, parts
        self.process, self.processes = process, processes
        self.views, self.frozen = views, frozen
        self.epoch = self.first = 0
        self.starts = list(range(0, count, batch_size))
        if seed is not None and pairs and count % batch_size == 1 and len(self.starts) > 1:
            self.starts.pop()
        self.largest = max((stop - start for start, stop in self._bounds()), default=0)
        """Images in the largest global batch."""

    @property
    def updates(self) -> int:
        """Global batches in an epoch."""
        return len(self.starts)

    def start_at(self, epoch: int, first: int = 0) -> None:
        """Which epoch comes next, and from which of its global batches on."""
        self.epoch, self.first = epoch, first

    def _bounds(self) -> list[tuple[int, int]]:
        return list(zip(self.starts, [*self.starts[1:], self.count], strict=True))

    def view(self, epoch: int) -> int:
        """Which augmented view of its images an epoch sees."""
        return epoch % self.views if self.views and epoch < self.frozen else epoch

    def __len__(self) -> int:
        return (len(self.starts) - self.first) * self.parts

    def __iter__(self) -> Iterator[list[Draw]]:
        order = list(range(self.count))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(mixed(self.seed, self.epoch))
            if self.weights is None:
                order = torch.randperm(self.count, generator=generator).tolist()
            else:
                order = drawn(self.weights, self.count, generator).tolist()
        view = self.view(self.epoch)
        for start, stop in self._bounds()[self.first :]:
            batch = order[start:stop]
            draws = [Draw(view, k, 1 / len(batch), batch[p - 1], p) for p, k in enumerate(batch)]
            for part in range(self.parts):
                mine = draws[self.process + self.processes * part :: self.processes * self.parts]
                yield mine or [draws[0]._replace(share=0.0)]


def drawn(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` positions (count,), drawn with replacement by these weights (N,).

    `torch.multinomial` refuses more than 2^24 weights, and its float32 sums favour some of many.
    """
    ends = weights.double().cumsum(0)  # (N,)
    points = torch.rand(count, generator=generator, dtype=torch.float64) * ends[-1]
    return torch.searchsorted(ends, points, right=True).clamp_(max=len(weights) - 1)


def fewest(count: int, batch_size: int, parts: int) -> int:
    """Images in an epoch's smallest micro-batch, if each batch of `GlobalBatches(pairs=True)` is cut into so many."""
    left = count % batch_size
    return (count if count <= batch_size else left if left > 1 else batch_size) // parts


def check_pairs(count: int, batch_size: int, accumulate: int, processes: int) -> None:
    """A `UserError` where a process has less than two of `count` images in some micro-batch."""
    parts = processes * accumulate
    if (least := fewest(count, batch_size, parts)) >= 2:
        return
    fitting = next((size for size in range(batch_size, count + 1) if fewest(count, size, parts) >= 2), None)
    cures = [f"--batch-size {fitting}"] if fitting else []
    cures += ["a smaller --accumulate"] if accumulate > 1 else []
    cures += ["fewer processes"] if processes > 1 else []
    raise UserError(
        f"--batch-size {batch_size} with --accumulate {accumulate} on {processes} process{'es' * (processes > 1)}: of "
        f"{count} images, an epoch's smallest micro-batch gets {least}. BatchNorm, which is trained here, needs 2: "
        f"use {' or '.join(cures) or 'more images'}."
    )


def _outlive_signals(ending: ctypes.c_byte, worker: int) -> None:
    """A signal to the process group must not end the workers before the training process has saved.

    At its exit multiprocessing sends each of them a SIGTERM and waits. By then `ending` is set, and they end as if all
    were well: torch raises, in whatever runs at that moment, for a worker that a signal has killed.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: ending.value and os._exit(0))


def make_loaders(
    splits: dict[str, Split],
    preprocess: Preprocess,
    recipe: Recipe,
    accelerator: Accelerator,
    pairs: bool = False,
    frozen: float = 0,
) -> dict[str, DataLoader]:
    """A loader of `Batch` per split: `train` shuffled and augmented, the others in order and as in use.

    With `pairs`, each process has at least two images in every part of a batch, of which BatchNorm can take statistics;
    a `UserError` where it cannot. `frozen` is the number of epochs in which the start of the network is. The loaders
    are not for `accelerator.prepare`, since `GlobalBatches` already takes this process's part.
    """
    images, training, seed = recipe.images, recipe.training, recipe.run.seed
    process, processes = accelerator.process_index, accelerator.num_processes
    if pairs:
        check_pairs(len(splits["train"].labels), training.batch_size, training.accumulate, processes)
    workers = worker_count(images.workers, accelerator.device)
    ending = multiprocessing.RawValue(ctypes.c_byte) if workers else None
    if workers:
        atexit.register(setattr, ending, "value", 1)  # comes before multiprocessing's own
    loaders = {}
    for name, split in splits.items():
        if name == "train":
            transform = training_transform(preprocess, images.augment, images.crop_scale)
            mix = mixing(images.mixup, images.cutmix)
            labels = torch.tensor(split.labels)
            weights = 1 / torch.bincount(labels)[labels].double() if images.balanced else None
            batches = GlobalBatches(
                len(labels),
                training.batch_size,
                seed,
                process,
                processes,
                training.accumulate,
                weights,
                pairs,
                # Without augmentation all views are one. What is mixed with another image has no views of its own.
                views=0 if mix else 1 if images.augment == "none" else images.views,
                frozen=frozen,
            )
        else:
            transform, mix = evaluation_transform(preprocess), None
            batches = GlobalBatches(len(split.labels), training.eval_batch_size * processes, None, process, processes)
        loaders[name] = DataLoader(
            Samples(split, len(preprocess.mean), transform, seed, mix),
            batch_sampler=batches,
            num_workers=workers,
            pin_memory=accelerator.device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=partial(_outlive_signals, ending),
            collate_fn=_collate if mix is None else _collate_mixed,
            generator=torch.Generator(),  # else each new iterator draws from the global one, and dropout moves
        )
    return loaders


def _collate(samples: list[tuple[Tensor, int, float, int, int, int, float]]) -> Batch:
    return _collate_mixed(samples)._replace(others=None, mix=None)


def _collate_mixed(samples: list[tuple[Tensor, int, float, int, int, int, float]]) -> Batch:
    images, *numbers = zip(*samples, strict=True)
    # As decoders and resizing leave them, (H, W, C) in memory: nothing is turned round on the way to the network.
    pixels = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)  # (N, C, H, W)
    return Batch(pixels, *map(torch.tensor, numbers))
