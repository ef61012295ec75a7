"""Compare an exported file with the model: logits on a few images, or predictions and accuracy on many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.errors import UserError
from finetune.inference.examples import Examples
from finetune.inference.export_forms import Form
from finetune.models.model_folder import Model

LIMIT, HALF_LIMIT = 1e-4, 1e-2  # largest difference allowed: in a logit; with float16 weights, in a probability
BATCH = 16


def same_logits(opened: Model, form: Form, images: Tensor) -> Callable[[Callable[[Tensor], Tensor]], float]:
    """A check of a file that was read back: its largest difference from the model on `images`, all and the first alone.

    `images` are normalised, (N, C, H, W). The difference is in a logit, with float16 in a probability. The check raises
    `UserError` where it is too large.
    """
    half = form.precision == "float16"
    with torch.inference_mode():
        expected = opened.model(images)  # (N, classes)

    def difference(found: Tensor, expected: Tensor) -> float:
        if half:
            found, expected = found.softmax(1), expected.softmax(1)
        return (found - expected).abs().max().item()

    def check(exported: Callable[[Tensor], Tensor]) -> float:
        largest = max(difference(exported(images), expected), difference(exported(images[:1]), expected[:1]))
        limit, unit = (HALF_LIMIT, "probability") if half else (LIMIT, "logit")
        if not largest <= limit:
            raise UserError(
                f"the exported {opened.net.model} differs from the model by {largest:.1e} in a {unit} (at most "
                f"{limit:g} is allowed), so it was not written. Try another --format."
            )
        return largest

    return check


@dataclass(frozen=True)
class Agreement:
    """How a file's predictions for N images compare with the model's."""

    images: int
    accuracy: float | None
    """In [0, 1]; None without labels."""
    model_accuracy: float | None
    equal: float
    """Fraction of images with the same prediction as the model's."""
    difference: float
    """The largest, in a probability."""

    @property
    def lost(self) -> float:
        """Points of accuracy that the file loses; without labels, points that it may lose: the changed predictions."""
        if self.accuracy is None or self.model_accuracy is None:
            return 100 * (1 - self.equal)
        return 100 * (self.model_accuracy - self.accuracy)

    def __str__(self) -> str:
        accuracy = "" if self.accuracy is None else f"accuracy {self.accuracy:.4f}, float32 {self.model_accuracy:.4f}; "
        equal = f"{self.equal:.1%} of predictions equal"
        return f"{accuracy}{equal}, largest difference in a probability {self.difference:.2f}"


def agreement(model: Callable[[Tensor], Tensor], exported: Callable[[Tensor], Tensor], examples: Examples) -> Agreement:
    """Compare two functions from normalised images (N, C, H, W) to logits (N, classes) on all the examples."""
    equal = correct = model_correct = 0
    difference = 0.0
    for images, labels in examples.batches(BATCH):
        with torch.inference_mode():
            expected, found = model(images), exported(images)  # (N, classes)
        equal += int((found.argmax(1) == expected.argmax(1)).sum())
        difference = max(difference, (found.softmax(1) - expected.softmax(1)).abs().max().item())
        if labels is not None:
            correct += int((found.argmax(1) == labels).sum())
            model_correct += int((expected.argmax(1) == labels).sum())
    count = len(examples)
    if examples.labels is None:
        return Agreement(count, None, None, equal / count, difference)
    return Agreement(count, correct / count, model_correct / count, equal / count, difference)


def same_accuracy(
    opened: Model, examples: Examples, tolerance: float
) -> Callable[[Callable[[Tensor], Tensor]], Agreement]:
    """A check of a file that was read back: its `Agreement` with the model.

    The check raises `UserError` where it loses more than `tolerance` points.
    """

    def check(exported: Callable[[Tensor], Tensor]) -> Agreement:
        found = agreement(opened.model, exported, examples)
        if found.lost > tolerance:
            measure = "of accuracy" if found.accuracy is not None else "of predictions changed"
            raise UserError(
                f"{opened.net.model} in int8 differs by {found.lost:.1f} points {measure} on {found.images} "
                f"{examples.kind} (at most --tolerance {tolerance:g}), so it was not written: {found}. Try more "
                f"--calibration-images, --half instead, or accept it with --tolerance {found.lost + 0.05:.1f}."
            )
        return found

    return check
