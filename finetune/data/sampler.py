"""Global batches and their order: pure functions of (seed, epoch), whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Sampler

from finetune.data.dataset import Draw, combined_seed
from finetune.errors import UserError


@dataclass(frozen=True)
class Shard:
    """The part of each global batch that one process gets."""

    process: int = 0
    processes: int = 1
    accumulate: int = 1
    """Micro-batches per global batch: gradient-accumulation steps."""


@dataclass(frozen=True)
class Views:
    """Which augmented view of its images an epoch sees."""

    number: int = 0
    """Views that take turns while the network's first depths are frozen. 0: each epoch has its own."""
    frozen_epochs: float = 0
    """Epochs, from the first on, in which those depths are frozen."""

    def of(self, epoch: int) -> int:
        """The view of an epoch."""
        return epoch % self.number if self.number and epoch < self.frozen_epochs else epoch


class GlobalBatches(Sampler[list[Draw]]):
    """This process's part of each global batch; each item is a micro-batch, a list of `Draw`.

    Every process cuts the same order into the same global batches and takes every `processes`-th image of each. Where
    a global batch has fewer images than there are processes, the rest get an image of weight 0, since all must take
    part in the exchange of gradients.

    Call `start_at` before iterating.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int | None,
        shard: Shard | None = None,
        image_weights: Tensor | None = None,
        pairs: bool = False,
        views: Views | None = None,
    ) -> None:
        """`count` images in global batches of `batch_size`, shuffled by `seed`; in order where it is None.

        With `image_weights` (count,), images are drawn with replacement. With `pairs`, a last batch of less than half
        the size joins the one before, so that BatchNorm gets enough images for its statistics. The batches depend on
        neither processes nor accumulation: a run can be resumed with any number of them.
        """
        self.count, self.seed, self.image_weights = count, seed, image_weights
        self.shard, self.views = shard or Shard(), views or Views()
        self.epoch = self.first = 0
        self.starts = list(range(0, count, batch_size))
        if seed is not None and pairs and joins(count % batch_size, batch_size) and len(self.starts) > 1:
            self.starts.pop()
        self.stops = [*self.starts[1:], count]
        self.largest = max((stop - start for start, stop in zip(self.starts, self.stops, strict=True)), default=0)
        """Images in the largest global batch."""

    @property
    def steps(self) -> int:
        """Global batches in an epoch: its optimizer steps."""
        return len(self.starts)

    def start_at(self, epoch: int, first: int = 0) -> None:
        """Let the next iteration be over this epoch, from its global batch number `first` on."""
        self.epoch, self.first = epoch, first

    def view(self, epoch: int) -> int:
        """The view of an epoch; see `Draw.view`."""
        return self.views.of(epoch)

    def __len__(self) -> int:
        return (self.steps - self.first) * self.shard.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        order, view, shard = self._order(), self.view(self.epoch), self.shard
        stride = shard.processes * shard.accumulate
        for start, stop in zip(self.starts[self.first :], self.stops[self.first :], strict=True):
            batch = order[start:stop]
            draws = [Draw(view, k, 1 / len(batch), batch[p - 1], p) for p, k in enumerate(batch)]
            for number in range(shard.accumulate):
                own = draws[shard.process + shard.processes * number :: stride]
                yield own or [draws[0]._replace(weight=0.0)]

    def _order(self) -> list[int]:
        if self.seed is None:
            return list(range(self.count))
        generator = torch.Generator().manual_seed(combined_seed(self.seed, self.epoch))
        if self.image_weights is None:
            return torch.randperm(self.count, generator=generator).tolist()
        return weighted_draw(self.image_weights, self.count, generator).tolist()


def weighted_draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` positions (count,), drawn with replacement with these weights (N,).

    `torch.multinomial` refuses more than 2^24 weights, and its float32 sums are biased where there are many.
    """
    ends = weights.double().cumsum(0)  # (N,)
    points = torch.rand(count, generator=generator, dtype=torch.float64) * ends[-1]
    return torch.searchsorted(ends, points, right=True).clamp_(max=len(weights) - 1)


def joins(left: int, batch_size: int) -> bool:
    """Whether a last batch of `left` images joins the one before, where BatchNorm is trained."""
    return 0 < left < max(2, batch_size / 2)


def smallest_micro_batch(count: int, batch_size: int, parts: int) -> int:
    """Images in an epoch's smallest micro-batch, if each of `GlobalBatches(pairs=True)` is split into `parts`."""
    whole, left = divmod(count, batch_size)
    if left and not (whole and joins(left, batch_size)):
        return left // parts
    return (count if whole == 1 else batch_size) // parts


def check_pairs(count: int, batch_size: int, accumulate: int, processes: int) -> None:
    """Raise `UserError` where a micro-batch of some process has less than two of `count` images."""
    parts = processes * accumulate
    if (smallest := smallest_micro_batch(count, batch_size, parts)) >= 2:
        return
    sizes = range(batch_size, count + 1)
    fitting = next((size for size in sizes if smallest_micro_batch(count, size, parts) >= 2), None)
    cures = [f"--batch-size {fitting}"] if fitting else []
    cures += ["a smaller --accumulate"] if accumulate > 1 else []
    cures += ["fewer processes"] if processes > 1 else []
    raise UserError(
        f"--batch-size {batch_size} with --accumulate {accumulate} on {processes} process{'es' * (processes > 1)}: of "
        f"{count} images, an epoch's smallest micro-batch gets {smallest}. BatchNorm, which is trained here, needs 2: "
        f"use {' or '.join(cures) or 'more images'}."
    )
