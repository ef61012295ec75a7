"""Likely label errors among held-out images, by confident learning. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetune.data import exclusions, folds
from finetune.data.types import ImageSet
from finetune.errors import UserError

if TYPE_CHECKING:
    from finetune.reporting.report.scored import Scored

SPLITS = {"validation": "val", "test": "test", "out of fold": "pool"}  # by `Scored.split`
PACKAGE = "likely label errors need a package that is not installed: pip install cleanlab"


@dataclass(frozen=True)
class LabelError:
    """An image whose label is likely wrong."""

    name: str
    """The image's: see `exclusions.keys`. Of arrays in a cross-validation, `pool/` and its position in the pool."""
    label: str
    predicted: str
    confidence: float
    """The probability of the given label, by a model that was not trained on the image."""

    @property
    def reason(self) -> str:
        """Why it is likely wrong, in words."""
        return f"the model gives '{self.label}' {self.confidence:.3f}, and more to '{self.predicted}'"


def find(scored: Scored, classes: list[str]) -> list[LabelError]:
    """The images of held-out predictions that are likely labelled wrong, the most likely first.

    Source: Northcutt et al. 2021, "Confident Learning", as cleanlab has it. Raises `UserError` where cleanlab is not
    installed, or the images are not known.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise UserError(PACKAGE) from error
    if scored.images is None:
        raise UserError("the images of the run cannot be read, or have changed after the training.")
    probabilities, labels = probabilities_of(scored, len(classes)), scored.scores.labels.numpy()
    present, labels_of_present = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        return []
    # cleanlab wants an image of each class.
    given = probabilities[:, present]
    given = given / np.maximum(given.sum(1, keepdims=True), 1e-12)
    ranked = find_label_issues(
        labels_of_present, given, filter_by="confident_learning", return_indices_ranked_by="self_confidence", n_jobs=1
    )
    names, predicted = exclusions.keys(SPLITS[scored.split], scored.images), given.argmax(1)
    return [
        LabelError(names[k], classes[labels[k]], classes[present[predicted[k]]], float(given[k, labels_of_present[k]]))
        for k in ranked.tolist()
        if predicted[k] != labels_of_present[k]
    ]


def locate(errors: list[LabelError], imageset: ImageSet) -> dict[int, LabelError]:
    """The errors by the position of their image among all images, split by split; without those that are not there.

    The set may have lost images to `--exclude` since, if they are files; others are named by their number.
    """
    keys = [key for split, images in imageset.splits.items() for key in exclusions.keys(split, images)]
    pool = folds.pool_order(imageset.splits["train"], imageset.splits["val"])
    position = {key: k for k, key in enumerate(keys)} | {f"pool/#{p}": k for p, k in enumerate(pool)}
    return {position[error.name]: error for error in errors if error.name in position}


def probabilities_of(scored: Scored, classes: int) -> np.ndarray:
    """Each image's probability of each class, (N, classes).

    A run keeps the five largest of its validation images; the rest is spread evenly over the other classes.
    """
    scores = scored.scores
    if scores.logits is not None:
        return scores.logits.double().softmax(1).numpy()
    top = scores.probabilities.double().numpy()  # (N, 5)
    others = max(classes - top.shape[1], 1)
    found = np.repeat((1 - top.sum(1, keepdims=True)).clip(0) / others, classes, axis=1)
    np.put_along_axis(found, scores.predictions.numpy(), top, axis=1)
    return found


def is_run(path: Path) -> bool:
    """Whether a path is a run's folder or that of a cross-validation."""
    return (path / "config.json").is_file() or (path / "fold-1" / "config.json").is_file()
