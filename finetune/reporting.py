"""The first and the last words of a run: its folder, its tracker, its summary and its pictures."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.recipe import Recipe


def new_folder(recipe: Recipe) -> Path:
    """The path of the run's folder, which must be new or empty; nothing is made yet."""
    output = (
        recipe.run.output.expanduser()
        if recipe.run.output
        else Path("runs") / f"{recipe.recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} exists already. Name a new folder, or remove it.")
    return output


def begin(recipe: Recipe, output: Path, classes: list[str], accelerator: Any, console: Any) -> Any:
    """Make the folder, write config.json, start the tracker and say where everything goes."""
    from finetune import tracking

    found = {"num_processes": accelerator.num_processes, "device": accelerator.device.type}
    settings = tracking.config(recipe, classes=classes, **found)
    accelerator.wait_for_everyone()  # all have seen that the folder is new
    if accelerator.is_main_process:
        try:
            (output / "plots").mkdir(parents=True)
        except OSError as error:
            raise UserError(f"--output {output} cannot be made: {error.strerror}.") from error
        tracking.write_json(output / "config.json", settings)
    tracker = tracking.Tracker(accelerator, recipe, settings, output)
    console.print(f"\n{tracker.state}\nThe run's folder is {output}\n", soft_wrap=True)
    return tracker


def preview(output: Path, loaders: dict[str, Any], classes: list[str], console: Any) -> int:
    """Draw the augmentations and say where; the exit code."""
    from finetune import plots

    plots.preview(output / "plots", loaders, classes)
    console.print(f"Look at {output / 'plots' / 'augmentations.png'}", soft_wrap=True)
    return 0


def end(
    output: Path,
    result: dict[str, Any],
    history: list[dict[str, Any]],
    scores: Any,
    loaders: dict[str, Any],
    classes: list[str],
    tracker: Any,
    console: Any,
    began: float,
    stopped: bool,
) -> None:
    """Write summary.json, draw the pictures and say what came out; `scores` are the best epoch's. Main process only."""
    from finetune import analysis, card, plots, runs, terminal, tracking

    result["total_seconds"] = time.perf_counter() - began
    tracking.write_json(output / "summary.json", result)
    tracker.summarize(result)
    analysis.save(output / "validation.safetensors", scores, result["best_epoch"])
    labels = {name: loader.dataset.split.labels for name, loader in loaders.items()}
    card.write(runs.read(output), {s: [ys.count(k) for k in range(len(classes))] for s, ys in labels.items()})
    try:
        plots.draw_all(output / "plots", history, result["best_epoch"], loaders, scores, classes)
    except Exception as error:  # a picture is not worth a result
        console.print(f"The pictures could not all be drawn ({type(error).__name__}: {error}).", soft_wrap=True)
    tracker.log_end(result, output, scores, loaders["val"].dataset, classes)
    console.print(terminal.ending(result, output, stopped), soft_wrap=True)
