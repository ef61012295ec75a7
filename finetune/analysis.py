"""What scores tell: per class, per confusion, per confidence; and how sure a share of so many images is."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from finetune.durable import save_tensors
from finetune.errors import UserError
from finetune.evaluate import Scores

BINS = 10  # of the reliability diagram and of the expected calibration error


@dataclass(frozen=True)
class PerClass:
    """Figures of one class."""

    name: str
    images: int
    precision: float
    recall: float
    """Share of its images that are called it: the accuracy within the class."""
    f1: float


def per_class(scores: Scores, classes: list[str]) -> list[PerClass]:
    """Precision, recall and F1 of each class, in the classes' order; 0 where a class is never there or never said."""
    first, labels, count = scores.guesses[:, 0], scores.labels, len(classes)
    figures = [
        metric(first, labels, count, average=None).tolist()
        for metric in (multiclass_precision, multiclass_recall, multiclass_f1_score)
    ]
    images = torch.bincount(labels, minlength=count).tolist()
    return [PerClass(*row) for row in zip(classes, images, *figures, strict=True)]


def confusion_matrix(scores: Scores, classes: int) -> Tensor:
    """Images by true class (row) and first guess (column): (classes, classes), int64."""
    return multiclass_confusion_matrix(scores.guesses[:, 0], scores.labels, classes)


def largest_confusions(matrix: Tensor, count: int) -> list[tuple[int, int, int]]:
    """The `count` most frequent mistakes as (true class, guess, images), most frequent first."""
    wrong = matrix.clone().fill_diagonal_(0)
    rows, columns = wrong.nonzero(as_tuple=True)
    found = [(int(r), int(c), int(wrong[r, c])) for r, c in zip(rows, columns, strict=True)]
    return sorted(found, key=lambda item: -item[2])[:count]


@dataclass(frozen=True)
class Calibration:
    """How far confidence can be taken at its word (Guo et al. 2017)."""

    error: float
    """Expected calibration error: the mean of |accuracy - confidence| over the bins, weighted by their images."""
    edges: list[float]
    counts: list[int]
    confidence: list[float]
    """Mean confidence of each bin; NaN where it is empty."""
    accuracy: list[float]


def calibration(scores: Scores) -> Calibration:
    """Confidence (the first guess's probability) against accuracy, in `BINS` bins of equal width."""
    confidence = scores.probabilities[:, 0].double()  # (N,)
    right = (scores.guesses[:, 0] == scores.labels).double()
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    bins = (torch.bucketize(confidence, edges) - 1).clamp(0, BINS - 1)
    counts = torch.bincount(bins, minlength=BINS)
    means = [
        torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, values) / counts for values in (confidence, right)
    ]
    error = binary_calibration_error(confidence.float(), right.long(), n_bins=BINS, norm="l1").item()
    return Calibration(error, edges.tolist(), counts.tolist(), means[0].tolist(), means[1].tolist())


def errors(scores: Scores, classes: list[str], names: list[str]) -> list[dict[str, Any]]:
    """The images that are got wrong, worst (largest loss) first; `names` say which image each one is."""
    wrong = (scores.guesses[:, 0] != scores.labels).nonzero().flatten().tolist()
    return [
        {
            "image": names[k],
            "true": classes[scores.labels[k]],
            "predicted": classes[scores.guesses[k, 0]],
            "probability": scores.probabilities[k, 0].item(),
            "loss": scores.losses[k].item(),
        }
        for k in sorted(wrong, key=lambda k: -scores.losses[k].item())
    ]


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share seen in `count` independent trials (Wilson 1927)."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def save(path: Path, scores: Scores, epoch: int) -> None:
    """Write scores as safetensors, with the epoch (from 1) that they are of."""
    held = {name: getattr(scores, name).contiguous() for name in ("losses", "guesses", "probabilities", "labels")}
    beside = path.with_name(path.name + ".new")
    save_tensors(held, beside, metadata={"epoch": json.dumps(epoch)})
    beside.replace(path)


def load(path: Path) -> tuple[Scores, int]:
    """Scores that `save` wrote, and their epoch; a `UserError` where the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            held = {name: file.get_tensor(name) for name in ("losses", "guesses", "probabilities", "labels")}
            return Scores(**held), int(json.loads(file.metadata()["epoch"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}. Remove it, and the images are scored again.") from error
