"""The results of a cross-validation: the table, scores and predictions of all folds.

Each image is predicted once, by a model whose run it did not touch: it was neither trained nor chosen on it.
"""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import torch
from rich.table import Table

from finetune.data.types import Split
from finetune.reporting import charts, run_folder, terminal
from finetune.runtime import files
from finetune.training.evaluation import Scores
from finetune.training.metrics import wilson

PREDICTIONS = "out_of_fold.csv"


def write(output: Path, classes: list[str], splits: list[Split], left_out: int) -> None:
    """Write summary.json, the out-of-fold predictions and their charts, and print the table.

    `splits` are the folds, and `left_out` is the number of test images that the set has besides.
    """
    folds, console = range(1, len(splits) + 1), terminal.make_console(main_process=True)
    summaries = [run_folder.read_summary(output / f"fold-{fold}" / run_folder.SUMMARY) for fold in folds]
    scores = [Scores.load(output / f"fold-{fold}" / run_folder.TEST_SCORES)[0] for fold in folds]
    _write_predictions(output / PREDICTIONS, scores, splits, classes)
    pooled = Scores(*(torch.cat(parts) for parts in zip(*(vars(score).values() for score in scores), strict=True)))
    each = {"accuracy": [score.accuracy for score in scores], "loss": [score.loss for score in scores]}
    for name in ("macro_f1", "balanced_accuracy"):
        each[name] = [score.record("accuracy")[f"val_{name}"] for score in scores]
    low, high = wilson(pooled.accuracy, len(pooled.labels))
    summary = {
        "folds": len(folds),
        "images": len(pooled.labels),
        **{name: statistics.fmean(values) for name, values in each.items()},
        **{f"{name}_sd": statistics.stdev(values) for name, values in each.items()},
        "out_of_fold_accuracy": pooled.accuracy,
        "out_of_fold_accuracy_interval": [low, high],
        "total_seconds": sum(found["total_seconds"] for found in summaries),
    }
    run_folder.write_json(output / run_folder.SUMMARY, summary)
    table = Table("fold", *("images", "accuracy", "loss", "seconds"), box=None, pad_edge=False)
    for fold, score, found in zip(folds, scores, summaries, strict=True):
        row = str(len(score.labels)), f"{score.accuracy:.4f}", f"{score.loss:.4f}", f"{found['total_seconds']:.0f}"
        table.add_row(str(fold), *row)
    console.print(table)
    unused = f" {left_out} test images of the set were not used." if left_out else ""
    console.print(
        f"\nAccuracy {summary['accuracy']:.4f} ± {summary['accuracy_sd']:.4f} over {len(folds)} folds; "
        f"{pooled.accuracy:.4f} of all {len(pooled.labels)} images (95 % interval {low:.3f} to {high:.3f}).\n"
        f"A fold's images chose nothing in its run.{unused} To train the model itself, leave --folds out.\n"
        f"Predictions  {output / PREDICTIONS}\nSummary      {output / run_folder.SUMMARY}",
        soft_wrap=True,
    )
    (output / "plots").mkdir(exist_ok=True)
    charts.of_predictions(output / "plots", pooled.first(), classes, "out of fold")


def _write_predictions(path: Path, scores: list[Scores], splits: list[Split], classes: list[str]) -> None:
    """A row per image, in the order of the folds: image, fold, true and predicted class, each class's probability."""
    # Names of files may be other bytes than UTF-8, which Python keeps as surrogates.
    with (
        files.atomic(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        table = csv.writer(file)
        table.writerow(["image", "fold", "true", "predicted", *classes])
        for fold, (score, split) in enumerate(zip(scores, splits, strict=True), 1):
            probabilities = score.logits.softmax(1).tolist()  # (N, classes)
            for k, name in enumerate(split.names()):
                label, predicted = int(score.labels[k]), int(score.predictions[k, 0])
                table.writerow([name, fold, classes[label], classes[predicted], *probabilities[k]])
