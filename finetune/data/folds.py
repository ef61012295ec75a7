"""The folds of a cross-validation: stratified parts of the images, each the test split of a run of its own.

The images of a fold choose nothing in its run. What that run chooses by validation, such as the best epoch and the
temperature, it chooses on a stratified part of the other folds.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from finetune.config.settings import Images
from finetune.data.types import ImageSet, Split, Subset, joined, stratified
from finetune.errors import UserError, listed


def split(imageset: ImageSet, images: Images, seed: int) -> ImageSet:
    """The splits of a fold: `test` is the fold, `val` is `--val-fraction` of each class of the rest.

    The training and validation images are pooled; a test split of their own is left out. Raises `UserError` for a class
    of too few images.
    """
    pool, held_out = pooled(imageset.splits["train"], imageset.splits["val"]), images.fold or 1
    folds = assign(pool.labels, imageset.classes, images.folds, seed)
    rest = [position for position, fold in enumerate(folds) if fold != held_out]
    labels = [pool.labels[position] for position in rest]
    train, val = ([rest[k] for k in part] for part in stratified(labels, imageset.classes, images.val_fraction, seed))
    test = [position for position, fold in enumerate(folds) if fold == held_out]
    splits = {"train": pool.part(train), "val": pool.part(val), "test": pool.part(test)}
    return replace(imageset, splits=splits)


def pooled(train: Split, val: Split) -> Split:
    """Both splits as one, in an order that does not depend on how a single set was split into them."""
    both, order = joined([train, val]), pool_order(train, val)
    if isinstance(both.items, list):
        return both.subset(order)
    if not _are_parts_of_one(train, val):
        return both
    positions = [*train.items.positions, *val.items.positions]
    return Split(Subset(train.items.items, [positions[k] for k in order]), [both.labels[k] for k in order])


def pool_order(train: Split, val: Split) -> list[int]:
    """Of each image of the pool, its position among the training and then the validation images."""
    keys: Sequence[Any] = range(len(train.labels) + len(val.labels))
    if isinstance(train.items, list) and isinstance(val.items, list):
        keys = train.items + val.items  # paths
    elif _are_parts_of_one(train, val):
        keys = [*train.items.positions, *val.items.positions]
    return sorted(range(len(keys)), key=keys.__getitem__)


def _are_parts_of_one(train: Split, val: Split) -> bool:
    """Whether both were split from one array or torchvision set."""
    one, other = train.items, val.items
    return isinstance(one, Subset) and isinstance(other, Subset) and one.items is other.items


def assign(labels: Sequence[int], classes: list[str], folds: int, seed: int) -> list[int]:
    """The fold of each image, from 1.

    The images of each class are dealt out in random order, beginning with a random fold: its share of the folds differs
    by one image at most. A class's folds depend on the seed, its name and its size alone. Raises `UserError` for
    classes of which a fold would have no image, or its run none to train or to validate on.
    """
    _check(labels, classes, folds)
    dealt = []
    for name, size in zip(classes, _sizes(labels, classes), strict=True):
        generator = random.Random(f"folds/{seed}/{name}")
        first = generator.randrange(folds)
        dealt.append([(first + k) % folds + 1 for k in generator.sample(range(size), size)])
    return [dealt[label].pop() for label in labels]


def _sizes(labels: Sequence[int], classes: list[str]) -> list[int]:
    found = Counter(labels)
    return [found[label] for label in range(len(classes))]


def _check(labels: Sequence[int], classes: list[str], folds: int) -> None:
    """Each fold needs an image of each class, and so do its training and its validation images."""

    def fits(size: int, folds: int) -> bool:
        return size >= folds and size - math.ceil(size / folds) >= 2

    sizes = _sizes(labels, classes)
    few = {name: size for name, size in zip(classes, sizes, strict=True) if not fits(size, folds)}
    if not few:
        return
    largest = next((k for k in range(min(sizes), 1, -1) if all(fits(size, k) for size in sizes)), None)
    cure = f"--folds {largest} is the largest that works" if largest else "no number of folds works"
    raise UserError(
        f"--folds {folds}: each fold needs an image of each class, and two more to train and to validate on. There are "
        f"too few of {listed([f'{name} ({size})' for name, size in few.items()])}: {cure}, or add images."
    )
