"""Decoded images, cached on disk and memory-mapped, for splits whose files are read in many epochs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from finetune.data import tensor_cache
from finetune.data.dataset import Samples
from finetune.data.decode import load
from finetune.data.image_files import open_image
from finetune.runtime import cpu, devices

FORMAT = 2  # raise it when a change alters what is stored
CHUNK = 64  # images decoded together
SAMPLE = 64  # images from whose sizes that of all is estimated


class Decoded(Sequence):
    """Images of a split as tensors (C, H, W), uint8, stored as (H, W, C); nothing is copied."""

    def __init__(self, origin: Sequence[Any], pixels: Tensor, shapes: Tensor) -> None:
        """`pixels` are all images' values, image after image; `shapes` (N, 3) are heights, widths and channels."""
        self.origin, self.pixels, self.shapes = origin, pixels, shapes
        self.ends = shapes.prod(1).cumsum(0)  # (N,)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, k: int) -> Tensor:
        height, width, channels = self.shapes[k].tolist()
        stop = int(self.ends[k])
        return self.pixels[stop - height * width * channels : stop].view(height, width, channels).permute(2, 0, 1)


def estimate(samples: Samples) -> int:
    """Bytes of all decoded images of a split, estimated from the headers of some files."""
    items = samples.split.items
    sizes = []
    for path in items[:: max(1, len(items) // SAMPLE)]:
        with open_image(path) as image:
            sizes.append(image.width * image.height * samples.channels)
    return round(statistics.fmean(sizes) * len(items))


def use(
    samples: Samples,
    folder: Path,
    limit: int,
    about: dict[str, str],
    accelerator: Accelerator,
    progress: Callable[[Iterable[Any], str], Iterable[Any]],
    raise_if_stopped: Callable[[], None],
) -> str:
    """Let samples read decoded copies of their files, which are made now if they are missing.

    Returns the reason where that fails, else "". `limit` bounds the folder, in bytes. Samples stay the same to the bit.
    Collective: one process of each machine decodes. The others keep in step with it, chunk by chunk, so that all stop
    together and no exchange times out.
    """
    items = samples.split.items
    key = tensor_cache.key(format=FORMAT, images=tensor_cache.fingerprint(items), channels=samples.channels)
    pixels, shapes = (folder / f"{key}-{part}{tensor_cache.SUFFIX}" for part in ("pixels", "shapes"))
    missing = accelerator.is_local_main_process and not (
        tensor_cache.is_whole(pixels) and tensor_cache.is_whole(shapes)
    )
    failure = ""
    if devices.anywhere(accelerator, missing):
        writer = _Writer(samples, pixels, shapes, limit, about) if missing else None
        try:
            for start in progress(range(0, len(items), CHUNK), "decoding images"):
                raise_if_stopped()
                if writer:
                    writer.add(start)
            failure = writer.commit() if writer else ""
        finally:
            if writer:
                writer.close()
        accelerator.wait_for_everyone()  # until the last chunk of each is on disk
    held = tensor_cache.read(pixels), tensor_cache.read(shapes)
    if devices.anywhere(accelerator, any(part is None for part in held)):
        return failure or "another process could not write them, or another run deleted them"
    samples.split = replace(samples.split, items=Decoded(items, *held))
    return ""


class _Writer:
    """Decodes a split in threads and writes it in order, until there is no room left."""

    def __init__(self, samples: Samples, pixels: Path, shapes: Path, limit: int, about: dict[str, str]) -> None:
        self.items, self.channels, self.limit = samples.split.items, samples.channels, limit
        self.pixels = tensor_cache.Writer(pixels, None, about)
        self.shapes = tensor_cache.Writer(shapes, len(self.items), about)
        self.pool = ThreadPoolExecutor(cpu.cores())  # decoders release the interpreter lock
        self.sizes: list[list[int]] = []
        self.failure = ""

    def add(self, start: int) -> None:
        """Decode and write the chunk that begins at this position."""
        if self.failure:
            return
        images = list(self.pool.map(self._decode, self.items[start : start + CHUNK]))  # (H, W, C) each
        values = torch.cat([image.view(-1) for image in images])
        self.sizes += [list(image.shape) for image in images]
        try:
            if self.pixels.written + len(values) > self.limit:
                raise OSError("they need more than --cache-gb")
            tensor_cache.make_room(self.pixels.path.parent, len(values), self.limit)
            self.pixels.append(values)
        except OSError as error:
            self.failure = error.strerror or str(error)

    def _decode(self, item: str) -> Tensor:
        return load(item, self.channels).movedim(0, -1).contiguous()  # (H, W, C)

    def commit(self) -> str:
        """Rename both files to their final names; returns the reason where anything failed, else ""."""
        try:
            if not self.failure:
                self.pixels.commit()
                self.shapes.append(torch.tensor(self.sizes))
                self.shapes.commit()
        except OSError as error:
            self.failure = error.strerror or str(error)
        return self.failure

    def close(self) -> None:
        """End the threads and delete unfinished files."""
        self.pool.shutdown()
        self.pixels.abandon()
        self.shapes.abandon()
