"""What scores tell of each class and of each mistake; and scores as files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from finetune.durable import save_tensors
from finetune.errors import UserError
from finetune.evaluate import Scores


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
    # Late, since it imports matplotlib: a run writes its scores without either.
    from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

    first, labels, count = scores.guesses[:, 0], scores.labels, len(classes)
    figures = [
        metric(first, labels, count, average=None).tolist()
        for metric in (multiclass_precision, multiclass_recall, multiclass_f1_score)
    ]
    images = torch.bincount(labels, minlength=count).tolist()
    return [PerClass(*row) for row in zip(classes, images, *figures, strict=True)]


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
