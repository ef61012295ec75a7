"""Likely label errors are those that held-out predictions disagree with."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from finetune.audit import label_errors
from finetune.audit.label_errors import LabelError
from finetune.config.settings import Images
from finetune.data import folds
from finetune.data.exclusions import absolute
from finetune.data.types import ImageSet, Split, Subset, joined
from finetune.errors import UserError
from finetune.reporting.report.scored import Scored
from finetune.training.evaluation import Scores

pytest.importorskip("cleanlab")
CLASSES = [f"class {k}" for k in range(8)]


def scored(wrong, logits=True):
    """160 images of 8 classes, confidently predicted; those at the positions `wrong` are labelled as the next class."""
    true = torch.arange(160) % 8
    noise = torch.randn(160, 8, generator=torch.Generator().manual_seed(0))
    values = 5 * torch.nn.functional.one_hot(true, 8) + noise
    values[wrong] *= 2  # confident learning counts those that are surer than the mean of their class
    labels = true.clone()
    labels[wrong] = (labels[wrong] + 1) % 8
    top = values.softmax(1).topk(5)
    losses = torch.nn.functional.cross_entropy(values, labels, reduction="none")
    scores = Scores(losses, top.indices, top.values, labels, values if logits else None)
    return Scored("validation", scores, None, Split([f"{k}.png" for k in range(160)], labels.tolist()))


@pytest.mark.parametrize("logits", [True, False], ids=["all probabilities", "the five largest"])
def test_wrong_labels_are_found_with_the_right_ones(logits):
    wrong = [3, 40, 77, 121]
    found = label_errors.find(scored(wrong, logits), CLASSES)
    assert {error.name: error.predicted for error in found} == {absolute(f"{k}.png"): CLASSES[k % 8] for k in wrong}
    assert [error.confidence for error in found] == sorted(error.confidence for error in found)


def test_nothing_is_found_where_all_labels_are_right():
    assert label_errors.find(scored([]), CLASSES) == []


def test_the_five_largest_probabilities_leave_the_rest_to_the_others():
    found = label_errors.probabilities_of(scored([], logits=False), 8)
    assert found.shape == (160, 8)
    assert found.sum(1) == pytest.approx(1)


def test_without_its_images_there_is_a_message():
    given = scored([])
    with pytest.raises(UserError, match="cannot be read, or have changed"):
        label_errors.find(Scored("test", given.scores, None), CLASSES)


def test_errors_are_located_among_the_images_that_are_left():
    splits = {"train": Split(["a.png", "b.png"], [0, 1]), "val": Split(["c.png"], [0])}
    errors = [LabelError(absolute(name), "x", "y", 0.1) for name in ("c.png", "gone.png", "b.png")]
    assert label_errors.locate(errors, ImageSet(["x", "y"], splits)) == {2: errors[0], 1: errors[2]}


def test_errors_of_arrays_are_located_in_a_run_and_in_a_cross_validation():
    values = np.arange(24)
    val, train = [3, 7, 12], [k for k in range(24) if k not in (3, 7, 12)]
    splits = {
        name: Split(Subset(values, part), [k % 2 for k in part]) for name, part in (("train", train), ("val", val))
    }
    imageset = ImageSet(["x", "y"], splits)
    items = [*train, *val]
    (place,) = label_errors.locate([LabelError("val/#1", "x", "y", 0.1)], imageset)
    assert items[place] == 7
    parts = [folds.split(imageset, replace(Images(), folds=3, fold=fold), seed=0).splits["test"] for fold in (1, 2, 3)]
    held_out = joined(parts)
    wrong = [0, 5, 23]
    errors = [LabelError(f"pool/{held_out.names()[k]}", "x", "y", 0.1) for k in wrong]
    found = label_errors.locate(errors, imageset)
    assert [items[k] for k in found] == [held_out.items[k] for k in wrong]
