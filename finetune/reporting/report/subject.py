"""What a report is of: a run, or the runs of a cross-validation together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune import recipes
from finetune.config.schema import fits
from finetune.config.settings import Recipe
from finetune.data import folds, run_images
from finetune.data.types import ImageSet
from finetune.errors import UserError
from finetune.models import metadata
from finetune.models.metadata import Metadata
from finetune.reporting import run_folder
from finetune.reporting.report import scored
from finetune.reporting.report.scored import Scored
from finetune.reporting.run_folder import RunFiles
from finetune.runtime import files

NAMED_WEIGHTS = ("default", "starter", "none")


@dataclass(frozen=True)
class Subject:
    """A run, or a cross-validation, read."""

    folder: Path
    name: str
    runs: list[RunFiles]
    """One, or those of the folds that have finished an epoch."""
    folds: int
    """The number of folds; 0 for a run."""
    recipe: Recipe
    """The settings; of a cross-validation those of its first fold."""
    classes: list[str]
    metadata: Metadata | None
    """That of the model; None where there is none yet."""
    result: Scored | None
    """The scores to report; None where the run has not ended."""
    train_images: int
    """0 where it is not known."""
    notes: list[str]
    """What is missing, and why."""

    @property
    def run(self) -> RunFiles:
        """The run; of a cross-validation that of its first fold."""
        return self.runs[0]

    @property
    def ended(self) -> bool:
        """Whether all runs have ended."""
        return all(run.ended for run in self.runs) and len(self.runs) == max(self.folds, 1)


def read(folder: Path, data: str | None = None) -> Subject:
    """Read a run's folder, its model folder or that of a cross-validation. Raises `UserError` for any other.

    `data` is where its images are now, if they have been moved.
    """
    folder = files.expanded(folder)
    if folder.name == "model" and (folder.parent / run_folder.CONFIG).is_file():
        folder = folder.parent
    if not (folder / run_folder.CONFIG).is_file() and (folder / "fold-1").is_dir():
        return _read_folds(folder, data)
    run = run_folder.read(folder)
    classes, recipe, model = _classes(run), run_images.moved(_recipe(run), data), _metadata(run)
    result = scored.of_run(run, len(classes))
    notes = [] if run.ended else [_unfinished(run)]
    imageset = _images(recipe, [run], notes)
    if result and imageset:
        result = replace(result, images=imageset[0].splits["test" if result.split == "test" else "val"])
    trained = run.summary.get("train_images") or (len(imageset[0].splits["train"].labels) if imageset else 0)
    return Subject(folder, run.name, [run], 0, recipe, classes, model, result, trained, notes)


def _read_folds(folder: Path, data: str | None) -> Subject:
    found = sorted(folder.glob(f"fold-*/{run_folder.METRICS}"), key=lambda path: (len(str(path)), path))
    runs = [run_folder.read(path.parent) for path in found if path.stat().st_size]
    if not runs:
        raise UserError(f"{folder}: no fold has finished an epoch, so there is nothing to show yet.")
    first = runs[0]
    classes, recipe, model = _classes(first), run_images.moved(_recipe(first), data), _metadata(first)
    count, notes = recipe.images.folds or len(runs), []
    if any(_classes(run) != classes for run in runs):
        raise UserError(f"{folder}: the folds have different classes, so they are of different runs.")
    finished = [run for run in runs if run.ended and (run.folder / run_folder.TEST_SCORES).is_file()]
    if len(finished) < count:
        notes.append(f"{len(finished)} of {count} folds have ended. The results are of those alone.")
    imageset = _images(recipe, finished, notes) if finished else None
    result = scored.pooled([scored.of_run(run, len(classes)) for run in finished], imageset)
    trained = first.summary.get("train_images", 0)
    name = folder.resolve().name
    return Subject(folder, name, runs, count, recipe, classes, model, result, trained, notes)


# ---- a run's files ---------------------------------------------------------------------------------------------------
def _classes(run: RunFiles) -> list[str]:
    classes: Any = run.config.get("classes")
    if not fits(classes, list[str]) or len(classes) < 2:
        raise UserError(f"{run.folder / run_folder.CONFIG} is damaged: its classes are no list of names.")
    return classes


def _recipe(run: RunFiles) -> Recipe:
    """The run's settings. A weights file may be gone: the model has the weights."""
    weights = run.config.get("weights")
    return recipes.from_config(run.config | {"weights": weights if weights in NAMED_WEIGHTS else "default"})


def _metadata(run: RunFiles) -> Metadata | None:
    folder = run.folder / "model"
    return metadata.read(folder) if (folder / metadata.NAME).is_file() else None


# ---- images ----------------------------------------------------------------------------------------------------------
def _images(recipe: Recipe, runs: list[RunFiles], notes: list[str]) -> list[ImageSet] | None:
    """The images of each run; None, with a note why, where they cannot be read or are others by now."""
    settings, seed = recipe.images, recipe.run.seed
    try:
        whole = run_images.read_unchecked(replace(settings, folds=None, fold=None), recipe.net.in_channels, seed)
        parts = [whole]
        if settings.folds:
            parts = [folds.split(whole, replace(settings, fold=run.config.get("fold")), seed) for run in runs]
        for run, part in zip(runs, parts, strict=True):
            run_images.check(part, run.config, settings.data)
    except (UserError, OSError) as error:
        notes.append(f"There are no pictures: {error}")
        return None
    return parts


def _unfinished(run: RunFiles) -> str:
    done = f"{len(run.history)} epoch{'s' * (len(run.history) > 1)}"
    stopped = (run.folder / run_folder.RESUME_ME).is_file()
    state = "was stopped, and can be resumed" if stopped else "has not ended"
    return (
        f"The run {state}: this is its state after {done}. Results of single images, and all that follows from them, "
        "are written at its end."
    )
