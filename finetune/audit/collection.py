"""All images of a set in one list, with what is known of each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.data import facts, verify
from finetune.data.exclusions import absolute
from finetune.data.image_files import open_image
from finetune.data.types import ImageSet, Joined, channel_axis


@dataclass(frozen=True)
class Collection:
    """The images of all splits, one after the other; N images."""

    classes: list[str]
    items: Sequence[Any]
    """N file paths, arrays or images of Pillow's; those of a torchvision set are decoded when they are asked for."""
    names: list[str]
    """N names for people: paths below the folder of the data, or split and position."""
    splits: list[str]
    labels: list[int]
    facts: np.ndarray
    """(N,) of `facts.FACTS`."""
    bad: dict[str, str]
    """Why files do not decode, by name. They are not among the N images."""
    are_files: bool

    def counts(self) -> dict[str, list[int]]:
        """The number of images of each class, by split."""
        found = {split: [0] * len(self.classes) for split in dict.fromkeys(self.splits)}
        for split, label in zip(self.splits, self.labels, strict=True):
            found[split][label] += 1
        return found

    def describe(self, k: int) -> str:
        """An image's name and class."""
        return f"{self.names[k]} ({self.splits[k]}, {self.classes[self.labels[k]]})"


def collect(imageset: ImageSet, root: Path | None) -> Collection:
    """The images of a set; names are relative to `root` where files are below it."""
    parts = imageset.splits.values()
    are_files = all(images.are_files for images in parts)
    items: Sequence[Any] = Joined([images.items for images in parts])
    if are_files:
        items = list(items)
        found = verify.facts(items)
        names = [short(path, root) for path in items]
    else:
        found = np.stack([facts.of_image(as_picture(item)) for item in items])  # one at a time: they may be large
        names = [f"{split}/{name}" for split, images in imageset.splits.items() for name in images.names()]
    splits = [split for split, images in imageset.splits.items() for _ in images.labels]
    labels = [label for images in parts for label in images.labels]
    bad = {short(path, root): why for path, why in imageset.bad.items()}
    return Collection(imageset.classes, items, names, splits, labels, found, bad, are_files)


def short(path: str, root: Path | None) -> str:
    """A path relative to `root` where it is below it; else absolute."""
    path = absolute(path)
    inside = root is not None and path.startswith(absolute(root) + os.sep)
    return os.path.relpath(path, root) if inside else path


def as_picture(item: Any) -> Image.Image:
    """An image of a set as Pillow's; of an array the first channel, or the first three."""
    if isinstance(item, str):
        return open_image(item)
    if isinstance(item, Image.Image):
        return item
    channels, axis = channel_axis(item.shape)
    pixels = np.asarray(item)
    pixels = pixels[..., None] if axis < 0 else np.moveaxis(pixels, axis, -1)  # (H, W, C)
    if pixels.dtype != np.uint8:
        pixels = (np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels[..., :3] if channels >= 3 else pixels[..., 0]))
