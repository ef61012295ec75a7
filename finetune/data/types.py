"""Labelled images in splits, whatever they were read from. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.errors import UserError

SPLITS = ("train", "val", "test")


class Subset(Sequence):
    """Some items of a sequence, by position; nothing is copied."""

    def __init__(self, items: Sequence[Any], positions: Sequence[int]) -> None:
        self.items, self.positions = items, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, k: int) -> Any:
        return self.items[self.positions[k]]


class Joined(Sequence):
    """The items of several sequences, one after the other; nothing is copied."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, k: int) -> Any:
        for part in self.parts:
            if k < len(part):
                return part[k]
            k -= len(part)
        raise IndexError


@dataclass(frozen=True)
class Split:
    """One split: N images in any form that `decode.load` takes, and the label of each."""

    items: Sequence[Any]
    """N file paths, an array (N, …), or the images of a torchvision dataset."""
    labels: list[int]
    """Positions in `ImageSet.classes`."""
    pool: Split | None = None
    """All images of a cross-validation, if these are some of them: what is computed of an image serves every fold."""
    positions: Sequence[int] = ()
    """The position of each image in `pool`."""

    def subset(self, positions: Sequence[int]) -> Split:
        """The images at these positions."""
        items = self.items
        chosen = [items[k] for k in positions] if isinstance(items, list) else Subset(items, positions)
        return Split(chosen, [self.labels[k] for k in positions])

    def part(self, positions: Sequence[int]) -> Split:
        """The images at these positions, with this split as their pool."""
        return replace(self.subset(positions), pool=self, positions=positions)

    @property
    def whole(self) -> Split:
        """The pool; the split itself where it has none."""
        return self.pool or self

    @property
    def are_files(self) -> bool:
        """Whether the images are files, and the items their paths."""
        return isinstance(self.items, list) and all(isinstance(item, str) for item in self.items)

    def names(self) -> list[str]:
        """A name for each image: its path, or its position in the pool, an array or a torchvision set."""
        if self.are_files:
            return list(self.items)
        return [f"#{k}" for k in (self.positions if self.pool else range(len(self.labels)))]


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in splits, read and checked."""

    classes: list[str]
    """Class names; a label is a position in this list."""
    splits: dict[str, Split]
    """`train`, `val` and, where there is one, `test`."""
    bad: dict[str, str] = field(default_factory=dict)
    """The files that are left out because they do not decode, each with the reason."""
    excluded: int = 0
    """Number of images that --exclude leaves out."""
    relabelled: int = 0
    """Number of images that --exclude gives another label."""

    def lacking(self, name: str) -> list[str]:
        """The classes of which a split has no image."""
        present = set(self.splits[name].labels)
        return [cls for label, cls in enumerate(self.classes) if label not in present]

    def sizes(self) -> str:
        """A digest of the image files' sizes in bytes, in order. It stays when files are moved."""
        found = hashlib.sha256()
        for split in self.splits.values():
            if len(split.items) and isinstance(split.items[0], str | Path):
                found.update(repr([state.st_size for state in map(os.stat, split.items)]).encode())
        return found.hexdigest()[:16]

    def fingerprint(self) -> str:
        """A digest of the images' names and labels, in order, but not of their folder or content."""
        found = hashlib.sha256(repr(self.classes).encode())
        for name, split in self.splits.items():
            found.update(repr((name, split.labels)).encode())
            if len(split.items) and isinstance(split.items[0], str | Path):
                found.update(repr([Path(item).name for item in split.items]).encode())
        return found.hexdigest()[:16]


def with_validation(splits: dict[str, Split], classes: list[str], fraction: float, seed: int) -> dict[str, Split]:
    """The splits. Without a `val`, a stratified part of `train` becomes it (see `stratified`)."""
    if "val" in splits:
        return splits
    train, val = stratified(splits["train"].labels, classes, fraction, seed)
    return splits | {"train": splits["train"].subset(train), "val": splits["train"].subset(val)}


def stratified(labels: Sequence[int], classes: list[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Positions to train on and to validate on.

    Validation gets `fraction` of each class, rounded, but each side gets at least one image. A class's validation
    images depend on the seed, its name and its size alone: another class does not change them. Raises `UserError` for
    a class of one image.
    """
    by_class: list[list[int]] = [[] for _ in classes]
    for position, label in enumerate(labels):
        by_class[label].append(position)
    train, val = [], []
    for name, positions in zip(classes, by_class, strict=True):
        if len(positions) < 2:
            raise UserError(f"class '{name}' has one image only: a split needs one to train on and one to validate on.")
        count = min(max(round(fraction * len(positions)), 1), len(positions) - 1)
        chosen = set(random.Random(f"{seed}/{name}").sample(range(len(positions)), count))
        val += [position for k, position in enumerate(positions) if k in chosen]
        train += [position for k, position in enumerate(positions) if k not in chosen]
    return train, val


def joined(splits: Sequence[Split]) -> Split:
    """The images of several splits, one after the other; in their pool, where they are parts of one."""
    labels = [label for split in splits for label in split.labels]
    items: Sequence[Any] = Joined([split.items for split in splits])
    if all(isinstance(split.items, list) for split in splits):
        items = list(items)
    if all(split.pool for split in splits):
        return Split(items, labels, splits[0].pool, [position for split in splits for position in split.positions])
    return Split(items, labels)


def channel_axis(shape: tuple[int, ...]) -> tuple[int, int]:
    """The number of channels of an image array of this shape, and their axis; -1 for grey without one."""
    if len(shape) == 2:
        return 1, -1
    first = shape[0] in (1, 3) and shape[2] not in (1, 3)
    return (shape[0], 0) if first else (shape[2], 2)
