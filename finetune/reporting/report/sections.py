"""The sections of a report: what each shows, as values for its template.

A section is a function of the subject and its pictures. It returns a title and the values for the template of its name,
or None where the run has nothing for it. `SECTIONS` has them in the page's order.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune.errors import UserError
from finetune.models import network
from finetune.reporting import plan
from finetune.reporting.report import curves as charts
from finetune.reporting.report import repeat
from finetune.reporting.report.curves import probability
from finetune.reporting.report.line_chart import draw
from finetune.reporting.report.pictures import Pictures
from finetune.reporting.report.scored import is_number
from finetune.reporting.report.subject import Subject
from finetune.training import metrics

MANY_CLASSES = 25  # from which on the confusion matrix has no numbers in its cells
CONFUSIONS = 12  # that are listed


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    name: str
    """Of the template, without `.html`; also the anchor."""
    title: str
    values: dict[str, Any]


def folds(subject: Subject, pictures: Pictures) -> Section | None:
    """The runs of a cross-validation, and their spread."""
    if not subject.folds:
        return None
    rows: list[dict[str, Any]] = []
    known: list[float] = []
    for run in subject.runs:
        images, accuracy = run.summary.get("test_images"), run.summary.get("test_accuracy")
        interval = None
        if run.ended and is_number(images) and is_number(accuracy):
            interval = metrics.wilson(accuracy, images)
            known.append(accuracy)
        rows.append({"run": run, "images": images, "accuracy": accuracy, "interval": interval})
    spread = (statistics.fmean(known), statistics.stdev(known)) if len(known) > 1 else None
    drawings = [draw(chart) for chart in charts.of_runs([run.name for run in subject.runs], subject.runs)]
    return Section("folds", "Folds", {"rows": rows, "spread": spread, "charts": drawings})


def curves(subject: Subject, pictures: Pictures) -> Section | None:
    """Loss, accuracy and learning rate by epoch, or by the strength of a solved head's penalty."""
    if subject.folds:
        return None
    run = subject.run
    drawings = [draw(chart) for chart in charts.of_run(run.history, run.summary["best_epoch"])]
    solved = drawings[0].chart.x is charts.STRENGTH
    title = "Regularisation path" if solved else "Training"
    return Section("curves", title, {"charts": drawings, "solved": solved})


def confusion(subject: Subject, pictures: Pictures) -> Section | None:
    """The confusion matrix with the images of its cells, and the largest confusions."""
    if subject.result is None:
        return None
    classes, scores = subject.classes, subject.result.scores
    matrix = metrics.confusion_matrix(scores.first(), len(classes))
    totals = matrix.sum(1)
    cells = {
        (row, column): {"count": int(matrix[row, column]), "share": matrix[row, column] / totals[row]}
        for row, column in zip(*(axis.tolist() for axis in matrix.nonzero()), strict=True)
    }
    names = subject.result.images.names() if subject.result.images else None
    probable = {
        k: {
            "src": None if k in pictures.worst else pictures.thumbnails[k],
            "name": "/".join(names[k].split("/")[-2:]) if names else "",
            "text": f"{probability(scores.probabilities[k, 0].item())} {classes[scores.predictions[k, 0]]}",
        }
        for k in pictures.thumbnails
    }
    shown = [
        [row, column, cell["count"], [k for k in pictures.cells[row, column] if k in pictures.thumbnails]]
        for (row, column), cell in cells.items()
    ]
    values = {
        "split": subject.result.split,
        "classes": classes,
        "cells": cells,
        "totals": totals.tolist(),
        "wrong": int(matrix.sum() - matrix.trace()),
        "images": int(matrix.sum()),
        "many": len(classes) > MANY_CLASSES,
        "largest": metrics.largest_confusions(matrix, CONFUSIONS) if len(classes) > 2 else [],
        "data": {"classes": classes, "cells": shown, "images": probable},
        "thumbnails": len(pictures.thumbnails),
        "limited": pictures.limited,
    }
    return Section("confusion", "Confusion matrix", values)


def classes(subject: Subject, pictures: Pictures) -> Section | None:
    """Precision, recall and F1 of each class, and the class that it is confused with most; lowest F1 first."""
    if subject.result is None:
        return None
    predictions = subject.result.scores.first()
    matrix = metrics.confusion_matrix(predictions, len(subject.classes))
    rows = []
    for k, found in enumerate(metrics.per_class(predictions, subject.classes)):
        others = matrix[k].copy()
        others[k] = 0
        other = int(others.argmax())
        confused = {"label": other, "count": int(others[other])} if others[other] else None
        interval = metrics.wilson(found.recall, found.images) if found.images else None
        rows.append({"label": k, "found": found, "interval": interval, "confused": confused})
    rows.sort(key=lambda row: row["found"].f1)
    return Section("classes", "Classes", {"rows": rows, "classes": subject.classes, "split": subject.result.split})


def mistakes(subject: Subject, pictures: Pictures) -> Section | None:
    """The mistakes with the largest losses."""
    if subject.result is None:
        return None
    scores, names = subject.result.scores, subject.result.images.names() if subject.result.images else None
    rows = [
        {
            "image": k,
            "name": "/".join(names[k].split("/")[-2:]) if names else f"image {k + 1} of the split",
            "true": subject.classes[scores.labels[k]],
            "predicted": subject.classes[scores.predictions[k, 0]],
            "probability": scores.probabilities[k, 0].item(),
            "probability_of_true": (-scores.losses[k]).exp().item(),
            "thumbnail": pictures.thumbnails.get(k),
            "heat_map": pictures.heat_maps.get(k),
        }
        for k in pictures.worst
    ]
    wrong = int((scores.labels != scores.predictions[:, 0]).sum())
    values = {"rows": rows, "wrong": wrong, "split": subject.result.split, "heat_maps": bool(pictures.heat_maps)}
    return Section("mistakes", "Worst mistakes", values)


def calibration(subject: Subject, pictures: Pictures) -> Section | None:
    """Confidence against accuracy."""
    if subject.result is None:
        return None
    after = metrics.calibration(subject.result.scores.first()).error
    before = metrics.calibration(subject.result.uncalibrated).error if subject.result.uncalibrated else None
    summary = subject.run.summary
    if before is None and not subject.folds:
        before = summary.get("calibration_error_before")
    values = {
        "chart": draw(charts.reliability(subject.result)),
        "before": before,
        "after": after,
        "temperature": None if subject.folds else summary.get("temperature"),
        "split": subject.result.split,
        "bins": metrics.BINS,
    }
    return Section("calibration", "Calibration", values)


def depths(subject: Subject, pictures: Pictures) -> Section | None:
    """The plan: what is trained at each depth."""
    if subject.metadata is None:
        return None
    recipe, processes = subject.recipe, subject.run.config.get("num_processes") or 1
    try:
        preprocess = subject.metadata.preprocess
        net = network.build(recipe, len(subject.classes), subject.train_images, processes, True, preprocess)
    except UserError:  # of another version
        return None
    rows = plan.rows(net, recipe.training, solved="l2" in subject.run.history[0])
    epochs = subject.run.summary["epochs_run"]
    trained = sum(row.parameters for row in rows if row.is_trained(epochs))
    values = {
        "rows": rows,
        "epochs": epochs,
        "trained": trained,
        "parameters": sum(row.parameters for row in rows),
        "steps": any(row.start is not None for row in rows),
        "batchnorm": any(row.batchnorm for row in rows),
    }
    return Section("depths", "What was trained", values)


def settings(subject: Subject, pictures: Pictures) -> Section | None:
    """The settings that differ from the recipe's defaults."""
    return Section("settings", "Settings", {"rows": repeat.differing(subject), "recipe": subject.recipe.recipe})


def environment(subject: Subject, pictures: Pictures) -> Section | None:
    """Versions, device, seed, commit, time, and the command of another such run."""
    config, summary = subject.run.config, subject.run.summary
    versions = config.get("versions")
    values = {
        "config": config,
        "summary": summary,
        "seconds": sum(run.summary["total_seconds"] for run in subject.runs),
        "written": repeat.written(subject),
        "versions": {k: v for k, v in versions.items() if v} if isinstance(versions, dict) else {},
        "command": repeat.command(subject),
    }
    return Section("environment", "Environment", values)


SECTIONS: tuple[Callable[[Subject, Pictures], Section | None], ...] = (
    folds, curves, confusion, classes, mistakes, calibration, depths, settings, environment,
)  # fmt: skip
