"""Cross-validation: a run for each fold, and the table, scores and predictions of all. Nothing here imports torch.

Each image is predicted once, by a model whose run it did not touch: it was neither trained nor chosen on it.
"""

from __future__ import annotations

import csv
import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.config.settings import Recipe
from finetune.data import readers
from finetune.data.folds import split as fold_split
from finetune.errors import STOPPED, UserError
from finetune.reporting import run_folder
from finetune.runtime import files

if TYPE_CHECKING:
    from finetune.data.types import ImageSet, Split
    from finetune.training.evaluation import Scores

PREDICTIONS = "out_of_fold.csv"


def run(recipe: Recipe, arguments: list[str], train: Callable[[list[str]], int]) -> int:
    """Train the runs of all folds in turn, in folders of their own, and write their pooled results.

    `train` runs a command line and returns its exit code. Returns the first that is not 0, else 0. With `--resume`,
    finished folds are kept.
    """
    folds, main_process = recipe.images.folds, os.environ.get("RANK", "0") == "0"
    whole = readers.read(replace(recipe.images, folds=None, fold=None), recipe.net.in_channels, recipe.run.seed)
    parts = [fold_split(whole, replace(recipe.images, fold=fold), recipe.run.seed) for fold in range(1, folds + 1)]
    output, started = _choose(recipe)
    if started:
        _check(recipe, output, parts)
        arguments = [*arguments, *_precision(output)]
    for fold in range(1, folds + 1):
        folder = output / f"fold-{fold}"
        if (folder / run_folder.SUMMARY).is_file():
            continue
        flags = ["--fold", str(fold), "--output", str(folder)]
        begun = started and (folder / run_folder.CONFIG).is_file()
        words = [word for word in arguments if word not in ("--resume", "--no-resume")]
        code = train([*words, *flags, *(["--resume"] if begun else [])])
        if code == STOPPED and main_process:
            print(f"That was fold {fold} of {folds}. Go on with all: --folds {folds} --resume --output {output}")
        if code:
            return code
    if main_process:
        left_out = len(whole.splits["test"].labels) if "test" in whole.splits else 0
        _write(output, whole.classes, [part.splits["test"] for part in parts], left_out)
    return 0


def _choose(recipe: Recipe) -> tuple[Path, bool]:
    """The folder of the folds' runs, and whether some may be there already."""
    resumed, output = recipe.run.resume, recipe.run.output
    if resumed and output and any(files.expanded(output).glob(f"fold-*/{run_folder.CONFIG}")):
        return files.expanded(output), True
    if resumed and output:
        raise UserError(
            f"--resume: {output} has no run of a fold. Name the folder of a cross-validation, or start anew."
        )
    return run_folder.choose(recipe), False


def _check(recipe: Recipe, output: Path, parts: list[ImageSet]) -> None:
    """Raise `UserError` where a run of a fold has other settings, or images, that may not change in a resumed run."""
    from finetune.reporting import records
    from finetune.training import resume

    for fold, part in enumerate(parts, 1):
        path = output / f"fold-{fold}" / run_folder.CONFIG
        if path.is_file():
            before = files.read_json(path)
            now = before | records.settings(replace(recipe, images=replace(recipe.images, fold=fold)))
            now |= {"mixed_precision": recipe.run.precision} if recipe.run.precision != "auto" else {}
            resume.changes(before, now)  # the settings first: with others, a fold has other images
            resume.changes(before, now | {"classes": part.classes, "images": part.fingerprint()})


def _precision(output: Path) -> list[str]:
    """The flag with which all folds compute in the first one's precision, on any hardware."""
    from finetune.training import resume

    found = resume.precision(output / "fold-1")
    return ["--precision", found] if found else []


def _write(output: Path, classes: list[str], splits: list[Split], left_out: int) -> None:
    """Write summary.json, the out-of-fold predictions and their charts, and print the table.

    `splits` are the folds, and `left_out` is the number of test images that the set has besides.
    """
    import torch
    from rich.table import Table

    from finetune.reporting import charts, terminal
    from finetune.training.evaluation import Scores
    from finetune.training.metrics import wilson

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
