"""Decoded images, kept on disk and memory-mapped, for what sees the same files epoch after epoch."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from finetune import limits, store
from finetune.hardware import anywhere
from finetune.imagesets import Split
from finetune.samples import Samples, load

FORMAT = 2  # raise it when a change alters what is stored
PART = 64  # images decoded together
LOOKED_AT = 64  # images whose sizes tell how large all are


class Decoded(Sequence):
    """Images of a split as tensors (C, H, W) of uint8, by position, in memory as (H, W, C); nothing is copied."""

    def __init__(self, origin: Sequence[Any], pixels: Tensor, shapes: Tensor) -> None:
        """`pixels` are all values on end; `shapes` (N, 3) are heights, widths and channels."""
        self.origin, self.pixels, self.shapes = origin, pixels, shapes
        self.ends = shapes.prod(1).cumsum(0)  # (N,)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, k: int) -> Tensor:
        height, width, channels = self.shapes[k].tolist()
        stop = int(self.ends[k])
        return self.pixels[stop - height * width * channels : stop].view(height, width, channels).permute(2, 0, 1)


def estimate(samples: Samples) -> int:
    """About how many bytes all images of a split take when decoded, by what some of its files say of themselves."""
    items = samples.split.items
    sizes = []
    for path in items[:: max(1, len(items) // LOOKED_AT)]:
        with Image.open(path) as image:
            sizes.append(image.width * image.height * samples.channels)
    return round(statistics.fmean(sizes) * len(items))


def keep(
    samples: Samples,
    folder: Path,
    most: int,
    about: dict[str, str],
    accelerator: Accelerator,
    shown: Callable[..., Iterator[Any]],
    stop: Callable[[], bool],
) -> bool:
    """Let samples of files read their decoded copies, which are made now where there are none; whether they are there.

    They are not where there was no room, or `stop` said so, for all processes alike. `most` bounds the folder, in
    bytes. Samples are the same to the bit. All processes take part.
    """
    items = samples.split.items
    name = store.key(format=FORMAT, images=store.fingerprint(items), channels=samples.channels)
    pixels, shapes = (folder / f"{name}-{part}{store.SUFFIX}" for part in ("pixels", "shapes"))
    missing = accelerator.is_local_main_process and not (store.whole(shapes) and store.whole(pixels))
    if anywhere(accelerator, missing):
        _decode(samples, pixels, shapes, most, about, shown, stop, missing)
    accelerator.wait_for_everyone()
    held = store.read(pixels), store.read(shapes)
    if anywhere(accelerator, any(part is None for part in held)):
        return False
    samples.split = Split(Decoded(items, *held), samples.split.labels)
    return True


def _decode(
    samples: Samples,
    pixels: Path,
    shapes: Path,
    most: int,
    about: dict[str, str],
    shown: Callable[..., Iterator[Any]],
    stop: Callable[[], bool],
    missing: bool,
) -> None:
    """Decode in threads, and write in order; leaves nothing where there is no room, or where `stop` says so.

    Where the process misses nothing it only keeps step with those that decode, so that all hear of a stop together, and
    none waits for another longer than for a part: NCCL would give up after ten minutes.
    """
    items, channels = samples.split.items, samples.channels

    def decode(item: str) -> Tensor:
        return load(item, channels).movedim(0, -1).contiguous()  # (H, W, C)

    writer, found = store.Writer(pixels, None, about), []
    with ThreadPoolExecutor(limits.cores()) as pool:  # decoders work outside the interpreter's lock
        for start in shown(range(0, len(items), PART), "decoding images"):
            if missing:
                images = list(pool.map(decode, items[start : start + PART]))
                found += [list(image.shape) for image in images]
                missing = _append(writer, images, most)
            if stop():
                writer.abandon()
                return
    if not missing:
        return
    try:
        writer.commit()
        table = store.Writer(shapes, len(found), about)
        table.append(torch.tensor(found))
        table.commit()
    except OSError:
        writer.abandon()


def _append(writer: store.Writer, images: list[Tensor], most: int) -> bool:
    """Write decoded images; False, with nothing left, where there is no room."""
    folder, size = writer.path.parent, sum(image.numel() for image in images)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if writer.written + size > most:
            raise OSError("more than --cache-gb")
        store.make_room(folder, size, most)
        writer.append(torch.cat([image.view(-1) for image in images]))
    except OSError:
        writer.abandon()
        return False
    return True
