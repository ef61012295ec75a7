"""Compute the activations of a network's frozen part for all images of a split, on all processes together."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from accelerate import Accelerator
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader

from finetune.data.dataset import Draw
from finetune.data.loader import Batch
from finetune.data.transforms import to_input
from finetune.features import graph_split
from finetune.models.architectures import Preprocess


class Extractor:
    """Computes activations in batches of a fixed size, since rounding depends on the number of images in a batch."""

    def __init__(self, accelerator: Accelerator, preprocess: Preprocess, channels_last: bool) -> None:
        self.accelerator, self.preprocess, self.channels_last = accelerator, preprocess, channels_last
        # On a CPU few images, whose activations stay in its caches.
        self.batch_size = 16 if accelerator.device.type == "cpu" else 64

    def batches(self, loader: DataLoader, view: int) -> DataLoader:
        """This process's batches of one view of a loader's images. All processes have the same number of batches."""
        count, process, processes = len(loader.dataset), self.accelerator.process_index, self.accelerator.num_processes
        rounds = math.ceil(count / (self.batch_size * processes))
        starts = [(k * processes + process) * self.batch_size for k in range(rounds)]
        # A process without images in the last round computes the first image again: every exchange needs all processes.
        draws = [
            [Draw(view, k, 1.0, k) for k in range(start, min(start + self.batch_size, count)) or (0,)]
            for start in starts
        ]
        return DataLoader(
            loader.dataset,
            batch_sampler=draws,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
            generator=torch.Generator(),  # else the iterator draws from the global one, which changes dropout
        )

    def rows(self, prefix: fx.GraphModule, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """All processes' activations, round by round, in the images' order, on the CPU: (k, …). Collective.

        Feature maps are (k, H, W, C) under channels-last. The last round may end with rows to drop.
        """
        autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        prefix = graph_split.cast(prefix, autocast) if autocast else prefix
        for values in self._computed(prefix, batches):
            yield self._gather(values)

    def is_map(self, values: Tensor) -> bool:
        """Whether activations are feature maps that are stored as (N, H, W, C)."""
        return self.channels_last and values.ndim == 4

    def _computed(self, prefix: nn.Module, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """The activations of each batch, in order; on a CPU several batches at once, each on one core.

        With all cores on one batch they would wait for each other at every layer, and for the next batch's images.
        """
        cores = torch.get_num_threads()
        if self.accelerator.device.type != "cpu" or cores == 1:
            yield from (self._compute(prefix, batch) for batch in batches)
            return
        torch.set_num_threads(1)  # the pool's threads inherit it
        try:
            with ThreadPoolExecutor(cores) as pool:
                waiting: deque[Future[Tensor]] = deque()
                for batch in batches:
                    waiting.append(pool.submit(self._compute, prefix, batch))
                    if len(waiting) > cores:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
        finally:
            torch.set_num_threads(cores)

    @torch.inference_mode()
    def _compute(self, prefix: nn.Module, batch: Batch) -> Tensor:
        x = to_input(batch.images, self.preprocess, self.accelerator.device, self.channels_last)  # (N, C, H, W)
        with self.accelerator.autocast():
            return prefix(x)  # (N, …)

    def _gather(self, values: Tensor) -> Tensor:
        values = values.permute(0, 2, 3, 1) if self.is_map(values) else values
        if self.accelerator.num_processes > 1:
            missing = self.batch_size - len(values)
            values = torch.cat([values, values.new_zeros(missing, *values.shape[1:])]) if missing else values
            # As bytes, since not every backend exchanges every type.
            raw = self.accelerator.gather(values.contiguous().view(len(values), -1).view(torch.uint8))
            values = raw.view(values.dtype).view(-1, *values.shape[1:])
        return values.cpu().contiguous()
