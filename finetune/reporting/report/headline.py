"""What was trained and how well it does, in a paragraph and a number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune.errors import listed
from finetune.models.architectures import FITS
from finetune.reporting import model_card
from finetune.reporting.report.curves import percent
from finetune.reporting.report.scored import is_number
from finetune.reporting.report.subject import Subject
from finetune.training import metrics


@dataclass(frozen=True)
class Headline:
    """The head of a report."""

    accuracy: float
    interval: tuple[float, float] | None
    """95 %, after Wilson; None where the number of images is not known."""
    measured: str
    """On which images, and whether these chose anything."""
    trained: str
    """What was trained on what."""
    facts: list[tuple[str, str]]
    """Further results."""


def of(subject: Subject) -> Headline:
    """The head of a subject's report."""
    summary, result = subject.run.summary, subject.result
    accuracy = result.scores.accuracy if result else summary["best_val_accuracy"]
    images = len(result.scores.labels) if result else summary.get("val_images")
    interval = metrics.wilson(accuracy, images) if is_number(images) and images else None
    return Headline(accuracy, interval, _measured(subject, images), _trained(subject), _facts(subject))


def _measured(subject: Subject, images: int | None) -> str:
    run, result = subject.run, subject.result
    counted = f"{images:,} " if images else ""
    if subject.folds and result:
        return f"Of all {counted}images, each predicted by the run of the fold that it was held out of."
    if subject.folds:
        return "Of the validation images of the first fold. No fold has ended."
    if not run.ended or result is None:
        return f"Of the {counted}validation images, in epoch {run.summary['best_epoch']}, which is the best so far."
    return f"Of {counted}{result.split} images. {model_card.choice(run.summary, run.config)}"


def _trained(subject: Subject) -> str:
    recipe, classes = subject.recipe, subject.classes
    origin = model_card.origin(str(subject.run.config.get("weights"))).replace("`", "")
    head = f"an {recipe.net.head}" if recipe.net.head == "mlp" else f"a {recipe.net.head}"
    known = subject.metadata
    size = (
        f" of {known.preprocess.crop} × {known.preprocess.crop} pixels, {FITS[known.preprocess.fit]}," if known else ""
    )
    name = Path(str(subject.run.config.get("data"))).name
    trained = f" {subject.train_images:,} images of" if subject.train_images else ""
    names = listed(classes, 8).removesuffix(", …") + (" and others" if len(classes) > 8 else "")
    return (
        f"{recipe.net.model} with {head} head, trained by the recipe {recipe.recipe} from {origin} on{trained} {name}. "
        f"It classifies images{size} into {len(classes)} classes: {names}."
    )


def _facts(subject: Subject) -> list[tuple[str, str]]:
    """Further results of the reported split, and the accuracy on the other one."""
    result, summary = subject.result, subject.run.summary
    if result is None:
        return []
    matrix = metrics.confusion_matrix(result.scores.first(), len(subject.classes))
    facts = [
        ("macro F1", f"{metrics.macro_f1(matrix):.3f}"),
        ("balanced accuracy", percent(metrics.balanced_accuracy(matrix))),
        ("loss", f"{result.scores.loss:.3f}"),
    ]
    if len(subject.classes) > 5:
        facts.insert(0, ("top-5 accuracy", percent(result.scores.top5)))
    if result.split == "test" and summary.get("val_images"):
        low, high = metrics.wilson(summary["best_val_accuracy"], summary["val_images"])
        value = f"{percent(summary['best_val_accuracy'])} ({percent(low)} to {percent(high)})"
        facts.append(("validation accuracy", value))
    return facts
