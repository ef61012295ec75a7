"""The folds of a cross-validation."""

from collections import Counter

import numpy as np
import pytest

from finetune.config.settings import Images
from finetune.data import folds
from finetune.data.types import ImageSet, Split
from finetune.errors import UserError

CLASSES = ["a", "b"]


def image_set(sizes: tuple[int, int] = (12, 7)) -> ImageSet:
    labels = [0] * sizes[0] + [1] * sizes[1]
    names = [f"{CLASSES[label]}/{k}" for k, label in enumerate(labels)]
    parts = {"train": range(0, len(labels), 2), "val": range(1, len(labels), 2)}
    splits = {name: Split([names[k] for k in part], [labels[k] for k in part]) for name, part in parts.items()}
    return ImageSet(CLASSES, splits | {"test": Split(["t"] * 5, [0] * 5)})


def test_every_image_is_tested_once_and_never_trained_or_validated_on_there():
    imageset, tested = image_set(), []
    everything = {name for split in ("train", "val") for name in imageset.splits[split].items}
    for fold in (1, 2, 3):
        found = folds.split(imageset, Images(folds=3, fold=fold), seed=0)
        parts = {name: set(split.items) for name, split in found.splits.items()}
        assert sum(map(len, parts.values())) == len(everything) == 19
        assert set.union(*parts.values()) == everything
        for name, split in found.splits.items():
            assert {CLASSES[label] for label in split.labels} == set(CLASSES), "each part has each class"
            assert all(item.startswith(CLASSES[k]) for item, k in zip(split.items, split.labels, strict=True)), name
            assert [split.pool.items[k] for k in split.positions] == split.items
        tested += found.splits["test"].items
    assert len(tested) == len(set(tested)) == 19


def test_a_class_is_dealt_out_evenly_whatever_the_other_classes_are():
    alone = folds.assign([0] * 11, ["a"], 4, seed=3)
    both = folds.assign([1, 0] * 11, ["b", "a"][::-1], 4, seed=3)
    assert sorted(Counter(alone).values()) == [2, 3, 3, 3]
    assert both[1::2] == alone
    assert folds.assign([0] * 11, ["a"], 4, seed=4) != alone


def test_arrays_are_pooled_in_place():
    array = np.arange(12)
    splits = {"train": Split(array[:8], [0, 1] * 4), "val": Split(array[8:], [0, 1] * 2)}
    found = folds.split(ImageSet(CLASSES, splits), Images(folds=2, fold=2), seed=0).splits
    seen = [int(split.items[k]) for split in found.values() for k in range(len(split.labels))]
    assert sorted(seen) == list(range(12))
    assert found["test"].names()[0] == f"#{found['test'].items[0]}"


@pytest.mark.parametrize(
    ("sizes", "number", "message"),
    [((12, 2), 5, r"too few of b \(2\): no number of folds works"), ((12, 4), 5, r"b \(4\): --folds 4 is the largest")],
)
def test_a_class_with_too_few_images_is_a_mistake(sizes, number, message):
    with pytest.raises(UserError, match=message):
        folds.split(image_set(sizes), Images(folds=number, fold=1), seed=0)
