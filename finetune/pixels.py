"""Decoded images, kept on disk and memory-mapped: `--cache-images`, for what sees the same files epoch after epoch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from finetune import store
from finetune.imagesets import Split
from finetune.samples import Samples, load

FORMAT = 1  # raise it when a change alters what is stored
PART = 64  # images decoded together


class Decoded(Sequence):
    """Images of a split as arrays (H, W, C) of uint8, by position; nothing is copied."""

    def __init__(self, origin: Sequence[Any], pixels: Tensor, shapes: Tensor) -> None:
        """`pixels` are all values on end; `shapes` (N, 3) are heights, widths and channels."""
        self.origin, self.pixels, self.shapes = origin, pixels, shapes
        self.ends = shapes.prod(1).cumsum(0)  # (N,)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, k: int) -> np.ndarray:
        shape = self.shapes[k].tolist()
        stop = int(self.ends[k])
        return self.pixels[stop - int(np.prod(shape)) : stop].view(shape).numpy()


def keep(
    samples: Samples,
    folder: Path,
    most: int,
    about: dict[str, str],
    accelerator: Accelerator,
    shown: Callable[..., Iterator[Any]],
) -> str:
    """Let samples of files read their decoded copies, which are made now where there are none; why not, if so.

    `most` bounds the folder, in bytes. Samples are the same to the bit. All processes take part.
    """
    items = samples.split.items
    if not isinstance(items, list):
        return "they are no files"
    name = store.key(format=FORMAT, images=store.fingerprint(items), channels=samples.channels)
    pixels, shapes = (folder / f"{name}-{part}{store.SUFFIX}" for part in ("pixels", "shapes"))
    if accelerator.is_local_main_process and not (store.whole(shapes) and store.whole(pixels)):
        _decode(samples, pixels, shapes, most, about, shown)
    accelerator.wait_for_everyone()
    held = store.read(pixels), store.read(shapes)
    missing = torch.tensor(float(any(part is None for part in held)), device=accelerator.device)
    if accelerator.reduce(missing, "sum").item():
        return "they do not fit: --cache-gb, or the disk"
    samples.split = Split(Decoded(items, *held), samples.split.labels)
    return ""


def _decode(
    samples: Samples, pixels: Path, shapes: Path, most: int, about: dict[str, str], shown: Callable[..., Iterator[Any]]
) -> None:
    """Decode in threads, and write in order; leaves nothing where there is no room."""
    items, channels = samples.split.items, samples.channels

    def decode(item: str) -> Tensor:
        return load(item, channels).movedim(0, -1).contiguous()  # (H, W, C)

    writer, found = store.Writer(pixels, None, about), []
    try:
        pixels.parent.mkdir(parents=True, exist_ok=True)
        starts = range(0, len(items), PART)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside the interpreter's lock
            for start in shown(starts, "decoding images"):
                images = list(pool.map(decode, items[start : start + PART]))
                found += [list(image.shape) for image in images]
                size = sum(image.numel() for image in images)
                if writer.written + size > most:
                    raise OSError("more than --cache-gb")
                store.make_room(pixels.parent, size, most)
                writer.append(torch.cat([image.view(-1) for image in images]))
        writer.commit()
        table = store.Writer(shapes, len(found), about)
        table.append(torch.tensor(found))
        table.commit()
    except OSError:
        writer.abandon()
