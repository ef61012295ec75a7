"""The scores that a report tells of, and the images that belong to them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune.data.types import ImageSet, Split, joined
from finetune.errors import UserError
from finetune.reporting import run_folder
from finetune.reporting.run_folder import RunFiles
from finetune.training.evaluation import Scores
from finetune.training.metrics import Predictions

FILES = {"test": run_folder.TEST_SCORES, "validation": run_folder.SCORES}  # the split to report first


@dataclass(frozen=True)
class Scored:
    """A saved model's scores on a split, and the images where they can be read."""

    split: str
    """`validation`, `test` or `out of fold`."""
    scores: Scores
    uncalibrated: Predictions | None
    """The first predictions before the temperature; None where they cannot be computed."""
    images: Split | None = None

    def __post_init__(self) -> None:
        if self.images is not None and self.images.labels != self.scores.labels.tolist():
            raise UserError("the scores in the run's folder belong to other images than the run. Copy the run again.")


def of_run(run: RunFiles, classes: int) -> Scored | None:
    """The scores of the best weights on the test split, or else on the validation split."""
    for split, name in FILES.items():
        path = run.folder / name
        if not path.is_file() or not run.ended:
            continue
        scores, epoch = Scores.load(path)
        if not _fits(scores, classes):
            raise UserError(f"{path} is damaged: it is not of a model of {classes} classes. Copy the run again.")
        if epoch == run.summary["best_epoch"]:
            return Scored(split, scores, _uncalibrated(scores, run.summary.get("temperature"), classes))
    return None


def _fits(scores: Scores, classes: int) -> bool:
    """Whether shapes and classes are those of scores."""
    count, columns = len(scores.labels), min(5, classes)
    shapes = [tuple(one.shape) for one in (scores.losses, scores.labels, scores.predictions, scores.probabilities)]
    if not count or shapes != [(count,), (count,), (count, columns), (count, columns)]:
        return False
    if not all(bool(one.isfinite().all()) for one in (scores.losses, scores.probabilities)):
        return False
    known = [scores.labels, scores.predictions]
    return all(not one.is_floating_point() and int(one.min()) >= 0 and int(one.max()) < classes for one in known)


def _uncalibrated(scores: Scores, temperature: Any, classes: int) -> Predictions | None:
    """The first predictions with the logits multiplied by the temperature, where all classes' probabilities are known.

    The logarithms of an image's probabilities are its logits, up to a constant.
    """
    if not is_number(temperature) or temperature in (0, 1):
        return None
    logits = scores.logits
    if logits is None and scores.predictions.shape[1] == classes:
        logits = torch.empty_like(scores.probabilities).scatter_(1, scores.predictions, scores.probabilities.log())
    if logits is None:
        return None
    return (
        Scores(scores.losses, scores.predictions, scores.probabilities, scores.labels, logits)
        .at_temperature(1 / temperature)
        .first()
    )


def pooled(parts: list[Scored | None], imageset: list[ImageSet] | None) -> Scored | None:
    """The scores of all folds on their test splits, as one."""
    known = [part for part in parts if part]
    if not known:
        return None
    columns = zip(*(vars(part.scores).values() for part in known), strict=True)
    scores = Scores(*(None if any(one is None for one in column) else torch.cat(column) for column in columns))
    before = [part.uncalibrated for part in known]
    uncalibrated = None
    if all(before):
        columns = zip(*((one.labels, one.predicted, one.confidence) for one in before), strict=True)
        uncalibrated = Predictions(*map(np.concatenate, columns))
    images = joined([one.splits["test"] for one in imageset]) if imageset else None
    return Scored("out of fold", scores, uncalibrated, images)


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
