"""`plot`: draw a run's pictures again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from finetune.commands import parse
from finetune.errors import UserError

if TYPE_CHECKING:
    from finetune.evaluate import Scores
    from finetune.inference import Ready


@dataclass(frozen=True)
class Options:
    """Draw a run's pictures again, into its plots/, from what it wrote down; of a run that goes on, as far as it is.

    The grids of images need the images: where they are gone, the charts alone are drawn.
    """

    run: tyro.conf.Positional[Path]
    """A run's folder."""


def main(arguments: list[str]) -> int:
    """Draw and say where; the exit code."""
    options = parse(Options, "plot", arguments)

    from finetune import analysis, charts, data, imagesets, inference, plots, runs

    run = runs.read(options.run)
    ready = inference.make_ready(options.run, "run")
    folder, best = run.folder / "plots", run.summary["best_epoch"]
    if not any(line["epoch"] == best for line in run.history):
        raise UserError(f"{run.folder}: metrics.jsonl has no epoch {best}, the best one by summary.json.")
    kept = run.folder / "validation.safetensors"
    scores, of_epoch = analysis.load(kept) if kept.is_file() else (None, 0)
    scores = scores if of_epoch == best else None
    if scores is not None and int(scores.guesses.max()) >= len(ready.classes):
        raise UserError(
            f"{kept} is another model's: it knows more classes. Remove it, and the images are scored again."
        )
    folder.mkdir(exist_ok=True)
    try:
        imageset = imagesets.read(ready.recipe.images, ready.opened.net.in_channels, ready.recipe.run.seed)
    except UserError as error:
        print(f"The charts alone, since the images cannot be read: {error}")
        charts.curves(folder / "curves.png", run.history, best)
        if scores is not None:
            charts.of_guesses(folder, scores.first(), ready.classes, "Validation")
    else:
        loaders = data.make_loaders(imageset.splits, ready.preprocess, ready.recipe, ready.accelerator)
        if scores is None or scores.labels.tolist() != imageset.splits["val"].labels:
            scores = score(ready, loaders)
        plots.draw_all(folder, run.history, best, loaders, scores, ready.classes)
    print(f"Pictures  {folder}")
    return 0


def score(ready: Ready, loaders: dict) -> Scores:
    """The model's scores on the validation images, for a run that did not leave them."""
    from finetune.evaluate import evaluate

    channels_last = ready.recipe.run.channels_last
    return evaluate(ready.opened.model, loaders["val"], ready.preprocess, channels_last, ready.accelerator)
