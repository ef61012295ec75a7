"""A labelled set of images in splits, wherever it comes from: folders, a CSV file, arrays, torchvision's named sets."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.recipe import Images


@dataclass(frozen=True)
class Split:
    """One split: images in whatever form `samples.load` takes, and for each the position of its class."""

    items: Sequence[Any]
    """File paths, an array (N, …), or a torchvision dataset."""
    labels: list[int]


@dataclass(frozen=True)
class ImageSet:
    """A set that was read and checked."""

    classes: list[str]
    """Class names; a label is a position in this list."""
    splits: dict[str, Split]
    """`train`, `val` and, where there is one, `test`."""
    skipped: int = 0
    """Images left out because they do not decode."""

    def lacking(self, name: str) -> list[str]:
        """The classes of which a split has no image."""
        present = set(self.splits[name].labels)
        return [cls for label, cls in enumerate(self.classes) if label not in present]

    def fingerprint(self) -> str:
        """A digest of the images' names and labels, in their order; not of where they are, nor of what they show."""
        found = hashlib.sha256(repr(self.classes).encode())
        for name, split in self.splits.items():
            found.update(repr((name, split.labels)).encode())
            if len(split.items) and isinstance(split.items[0], str | Path):
                found.update(repr([Path(item).name for item in split.items]).encode())
        return found.hexdigest()[:16]

    def sizes(self) -> str:
        """A digest of the image files' sizes in bytes, in their order: files that were moved keep it."""
        found = hashlib.sha256()
        for split in self.splits.values():
            if len(split.items) and isinstance(split.items[0], str | Path):
                found.update(repr([state.st_size for state in map(os.stat, split.items)]).encode())
        return found.hexdigest()[:16]


def read(images: Images, in_channels: int, seed: int) -> ImageSet:
    """Read and check what `--data` names. Every mistake in it is a `UserError` that names the thing."""
    from finetune import arrays, folders, named, starter, tables

    path = Path(starter.path(images.data)).expanduser()
    if arrays.are_at(path):
        return arrays.read(path, in_channels, images.val_fraction, seed)
    if not path.exists() and images.data.lower() not in named.SETS:
        raise missing(path, named.SETS)
    if in_channels not in (1, 3):
        raise UserError(
            f"--in-channels {in_channels}: the images of --data {images.data} are grey (1) or colour (3). Others need "
            f"arrays: an .npz, or a folder of .npy."
        )
    if path.suffix == ".csv" and path.is_file():
        return tables.read(path, images.val_fraction, seed, images.skip_bad_images)
    if not path.exists():
        return named.read(images.data.lower(), images.data_root, images.val_fraction, seed)
    return folders.read(path, images.val_fraction, seed, images.skip_bad_images)


def missing(path: Path, names: Sequence[str]) -> UserError:
    """The error for a path that is not there: what is beside it, and what sets are known by name."""
    parent = path.parent
    while not parent.is_dir():
        parent = parent.parent
    inside = sorted(child.name for child in parent.iterdir() if not child.name.startswith("."))
    has = f"{parent} holds {', '.join(inside[:8])}." if inside else f"{parent} is empty."
    return UserError(f"--data {path} does not exist. {has} Sets known by name: {', '.join(sorted(names))}.")


def stratified(by_class: dict[str, list[int]], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Positions to train and to validate on: of each class `fraction`, rounded, but at least one image on either side.

    A class's part is drawn by the seed and its name: another class more or less does not move it. A class of one image
    is a `UserError`.
    """
    train, val = [], []
    for name, positions in by_class.items():
        if len(positions) < 2:
            raise UserError(f"class '{name}' has one image only: a split needs one to train on and one to validate on.")
        count = min(max(round(fraction * len(positions)), 1), len(positions) - 1)
        chosen = set(random.Random(f"{seed}/{name}").sample(range(len(positions)), count))
        val += [position for k, position in enumerate(positions) if k in chosen]
        train += [position for k, position in enumerate(positions) if k not in chosen]
    return train, val


def grouped(labels: Sequence[int], classes: list[str]) -> dict[str, list[int]]:
    """The positions of each class's images, by class name."""
    by_class: dict[str, list[int]] = {name: [] for name in classes}
    for position, label in enumerate(labels):
        by_class[classes[label]].append(position)
    return by_class
