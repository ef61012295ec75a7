"""Metrics of a model's predictions, from NumPy arrays. Nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

from finetune.errors import UserError

BINS = 10  # of the reliability diagram and of the expected calibration error


@dataclass(frozen=True)
class Predictions:
    """A model's top-1 predictions for N images."""

    labels: np.ndarray
    """(N,) int64, the true classes."""
    predicted: np.ndarray
    """(N,) int64, the most probable classes."""
    confidence: np.ndarray
    """(N,) float64, their probabilities."""

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool."""
        return self.predicted == self.labels

    def of_occurring(self, classes: list[str]) -> tuple[Predictions, list[str]]:
        """The same predictions, numbered among the classes that are some image's or are predicted; and their names."""
        kept = np.union1d(self.labels, self.predicted)
        labels, predicted = np.searchsorted(kept, self.labels), np.searchsorted(kept, self.predicted)
        return Predictions(labels, predicted, self.confidence), [classes[k] for k in kept]

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """The first predictions of a file of scores (`evaluation.Scores.save`), without torch.

        Raises `UserError` where the file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            held = load_file(path)
            return cls(held["labels"], held["predictions"][:, 0], held["probabilities"][:, 0].astype(np.float64))
        except (OSError, SafetensorError, KeyError, IndexError) as error:
            raise UserError(f"{path} is damaged: {error}. Delete it, and the images are scored again.") from error


@dataclass(frozen=True)
class PerClass:
    """Metrics of one class."""

    name: str
    images: int
    precision: float
    recall: float
    f1: float


def per_class(predictions: Predictions, classes: list[str]) -> list[PerClass]:
    """Precision, recall and F1 of each class, in the classes' order; 0 where they are undefined."""
    # Imported late, since torchmetrics imports matplotlib.
    import torch
    from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

    predicted, labels = torch.from_numpy(predictions.predicted), torch.from_numpy(predictions.labels)
    found = [
        metric(predicted, labels, max(2, len(classes)), average=None).tolist()[: len(classes)]
        for metric in (multiclass_precision, multiclass_recall, multiclass_f1_score)
    ]
    images = torch.bincount(labels, minlength=len(classes)).tolist()
    return [PerClass(*row) for row in zip(classes, images, *found, strict=True)]


def confusion_matrix(predictions: Predictions, classes: int) -> np.ndarray:
    """Images by true class (row) and predicted class (column): (classes, classes), int64."""
    cells = np.bincount(predictions.labels * classes + predictions.predicted, minlength=classes * classes)
    return cells.reshape(classes, classes)


def balanced_accuracy(matrix: np.ndarray) -> float:
    """The mean recall over the classes that have images, from a confusion matrix (classes, classes)."""
    images = matrix.sum(1)
    return float((matrix.diagonal() / np.maximum(images, 1))[images > 0].mean())


def macro_f1(matrix: np.ndarray) -> float:
    """The mean F1 over the classes that have images or were predicted, from a confusion matrix (classes, classes)."""
    either = matrix.sum(0) + matrix.sum(1)
    return float((2 * matrix.diagonal() / np.maximum(either, 1))[either > 0].mean())


def auroc(logits: Tensor, labels: Tensor) -> float:
    """The area under the ROC curve of each class against the rest, averaged: of logits (N, classes), labels (N,).

    Only over the classes that have images.
    """
    from torchmetrics.functional.classification import multiclass_auroc

    areas = multiclass_auroc(logits.softmax(1), labels, logits.shape[1], average=None)
    return areas[labels.unique()].double().mean().item()


def largest_confusions(matrix: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """The most frequent confusions of a matrix (classes, classes): true class, predicted class, images."""
    wrong = [(int(row), int(column), int(matrix[row, column])) for row, column in np.argwhere(matrix) if row != column]
    return sorted(wrong, key=lambda item: -item[2])[:count]


@dataclass(frozen=True)
class Calibration:
    """How well confidence agrees with accuracy (Guo et al. 2017)."""

    error: float
    """Expected calibration error: the mean of |accuracy - confidence| over the bins, weighted by their images."""
    edges: np.ndarray
    """(bins + 1,)"""
    counts: np.ndarray
    """(bins,), images in each bin."""
    confidence: np.ndarray
    """(bins,), mean confidence; NaN where a bin is empty."""
    accuracy: np.ndarray
    """(bins,), accuracy; NaN where a bin is empty."""


def calibration(predictions: Predictions) -> Calibration:
    """Confidence against accuracy, in `BINS` bins of equal width."""
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.clip(np.searchsorted(edges, predictions.confidence) - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    sums = [np.bincount(bins, values, BINS) for values in (predictions.confidence, predictions.correct)]
    with np.errstate(invalid="ignore"):  # an empty bin has no mean
        confidence, accuracy = (values / counts for values in sums)
    error = np.sum((counts * np.abs(accuracy - confidence))[counts > 0]) / len(predictions.labels)
    return Calibration(float(error), edges, counts, confidence, accuracy)


def wilson(proportion: float, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion observed in `count` independent trials (Wilson 1927)."""
    z = 1.959964
    middle = (proportion + z * z / (2 * count)) / (1 + z * z / count)
    variance = proportion * (1 - proportion) / count + z * z / (4 * count * count)
    half = z / (1 + z * z / count) * math.sqrt(variance)
    return max(0.0, middle - half), min(1.0, middle + half)
