"""Images on which exported files are calibrated, compared and timed: a run's own, or others where those are gone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune import recipes
from finetune.data import run_images
from finetune.data.types import ImageSet, Split
from finetune.errors import UserError
from finetune.inference.transform import make_transform
from finetune.models.model_folder import Model
from finetune.reporting import run_folder
from finetune.runtime import files
from finetune.starter import images as starter

MOST = 1000  # images on which accuracies are compared


@dataclass(frozen=True)
class Examples:
    """Some images under a model's evaluation transform."""

    opened: Model
    items: Sequence[Any]
    """Anything that `make_transform` takes."""
    labels: Sequence[int] | None
    """Positions in the model's classes; None where they are not known."""
    kind: str
    """In words: validation images, images, …"""

    def __len__(self) -> int:
        return len(self.items)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Normalised images (N, C, H, W), at most `size` of them, and their labels (N,)."""
        transform = make_transform(self.opened.preprocess)
        for start in range(0, len(self.items), size):
            images = transform([self.items[k] for k in range(start, min(start + size, len(self.items)))])
            yield images, None if self.labels is None else torch.tensor(self.labels[start : start + size])

    def tensor(self, count: int) -> Tensor:
        """The first images, normalised: (N, C, H, W)."""
        return next(self.chosen(range(min(count, len(self)))).batches(count))[0]

    def chosen(self, positions: Sequence[int]) -> Examples:
        """The images at these positions."""
        labels = None if self.labels is None else [self.labels[k] for k in positions]
        return Examples(self.opened, [self.items[k] for k in positions], labels, self.kind)

    def spread(self, count: int) -> Examples:
        """At most `count` images, evenly spaced."""
        count = min(count, len(self))
        return self.chosen([k * len(self) // count for k in range(count)])

    def divided(self, count: int) -> tuple[Examples, Examples]:
        """At most `count` images and at most half, as `stratified`; and at most `MOST` of the others."""
        first = self.stratified_positions(min(count, len(self) // 2))
        others = sorted(set(range(len(self))) - set(first))
        return self.chosen(first), self.chosen(others).spread(MOST)

    def stratified(self, count: int) -> Examples:
        """At most `count` images, equally many of each class as far as it has them; the same ones every time."""
        return self.chosen(self.stratified_positions(count))

    def stratified_positions(self, count: int) -> list[int]:
        """The positions of `stratified`, in order."""
        order = list(range(len(self)))
        random.Random(0).shuffle(order)
        seen: Counter[int] = Counter()
        turns = []
        for position in order:  # in the first turn one image of each class, in the second another, …
            label = 0 if self.labels is None else self.labels[position]
            turns.append((seen[label], position))
            seen[label] += 1
        turns.sort(key=lambda turn: turn[0])
        return sorted(position for _, position in turns[:count])


def of_run(opened: Model) -> dict[str, Examples] | None:
    """The images of the model's run: `train` and `val`, with labels. None where there is no run or they are gone."""
    if opened.folder is None or opened.folder.name != "model":
        return None
    config = opened.folder.parent / run_folder.CONFIG
    if not config.is_file():
        return None
    try:
        known = files.read_json(config)
        found = run_images.read(recipes.from_config(known), known, opened.net.in_channels)
    except UserError:
        return None
    if found.classes != opened.classes:
        return None
    return {name: _of_split(opened, found, name) for name in ("train", "val")}


def _of_split(opened: Model, found: ImageSet, name: str) -> Examples:
    split: Split = found.splits[name]
    return Examples(opened, split.items, split.labels, {"train": "training images", "val": "validation images"}[name])


def of_files(opened: Model, paths: Sequence[str]) -> Examples:
    """Image files; with labels where each is in a folder that has the name of a class."""
    position = {name: label for label, name in enumerate(opened.classes)}
    names = [Path(path).parent.name for path in paths]
    labels = [position[name] for name in names] if all(name in position for name in names) else None
    return Examples(opened, list(paths), labels, "images")


def built_in(opened: Model, count: int) -> Examples:
    """Images of the starter set, without labels; for a model of other than 1 or 3 channels, noise."""
    channels, side = opened.net.in_channels, opened.preprocess.crop
    if channels in (1, 3):
        return Examples(opened, [starter.draw(species, 0) for species in range(count)], None, "built-in images")
    generator = torch.Generator().manual_seed(0)
    return Examples(opened, list(torch.rand(count, channels, side, side, generator=generator)), None, "noise images")
