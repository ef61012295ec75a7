"""Figures that charts and tables show of a model's guesses, from plain arrays: nothing here needs torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

BINS = 10  # of the reliability diagram and of the expected calibration error


@dataclass(frozen=True)
class Guesses:
    """What a model takes each of N images for."""

    labels: np.ndarray
    """(N,) int64, the true classes."""
    first: np.ndarray
    """(N,) int64, the first guesses."""
    confidence: np.ndarray
    """(N,) float64, the first guesses' probabilities."""

    @property
    def right(self) -> np.ndarray:
        """(N,) bool."""
        return self.first == self.labels


def confusion_matrix(guesses: Guesses, classes: int) -> np.ndarray:
    """Images by true class (row) and first guess (column): (classes, classes), int64."""
    cells = np.bincount(guesses.labels * classes + guesses.first, minlength=classes * classes)
    return cells.reshape(classes, classes)


def largest_confusions(matrix: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """The `count` most frequent mistakes as (true class, guess, images), most frequent first."""
    found = [(int(row), int(column), int(matrix[row, column])) for row, column in np.argwhere(matrix) if row != column]
    return sorted(found, key=lambda item: -item[2])[:count]


@dataclass(frozen=True)
class Calibration:
    """How far confidence can be taken at its word (Guo et al. 2017)."""

    error: float
    """Expected calibration error: the mean of |accuracy - confidence| over the bins, weighted by their images."""
    edges: np.ndarray
    """(bins + 1,)"""
    counts: np.ndarray
    """(bins,), like the next two."""
    confidence: np.ndarray
    """Mean confidence of each bin; NaN where it is empty."""
    accuracy: np.ndarray


def calibration(guesses: Guesses) -> Calibration:
    """Confidence (the first guess's probability) against accuracy, in `BINS` bins of equal width."""
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.clip(np.searchsorted(edges, guesses.confidence) - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    sums = [np.bincount(bins, values, BINS) for values in (guesses.confidence, guesses.right)]
    with np.errstate(invalid="ignore"):  # an empty bin has no mean
        confidence, accuracy = (values / counts for values in sums)
    error = np.sum((counts * np.abs(accuracy - confidence))[counts > 0]) / len(guesses.labels)
    return Calibration(float(error), edges, counts, confidence, accuracy)


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share seen in `count` independent trials (Wilson 1927)."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
