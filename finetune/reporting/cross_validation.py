"""Cross-validation: a run for each fold. Nothing here imports torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from finetune.config.settings import Recipe
from finetune.data import readers
from finetune.data.folds import split as fold_split
from finetune.data.types import ImageSet
from finetune.errors import STOPPED, UserError
from finetune.reporting import run_folder
from finetune.runtime import files


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
        from finetune.reporting import out_of_fold

        left_out = len(whole.splits["test"].labels) if "test" in whole.splits else 0
        out_of_fold.write(output, whole.classes, [part.splits["test"] for part in parts], left_out)
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
