"""The first and the last words of a run: its folder, its tracker, its summary and its pictures."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune import beside, limits
from finetune.errors import UserError
from finetune.recipe import Recipe, Training

WISH = "resume-me"  # in a run's folder: it was stopped on request and wants to be resumed


def folder(recipe: Recipe) -> Path:
    """The path of the run's folder; nothing is made yet. It must be new or empty, or with `--resume` a run's.

    A path that `--output` does not name holds the time, and `begin` numbers it where another run has it.
    """
    if recipe.run.resume and not recipe.run.output:
        raise UserError("--resume needs --output: the folder of the run to go on with.")
    output = (
        recipe.run.output.expanduser()
        if recipe.run.output
        else Path("runs") / f"{recipe.recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    )
    filled = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if recipe.run.resume:
        if not (output / "config.json").exists():
            raise UserError(f"--resume: {output} is no run's folder. Name one with --output, or leave --resume out.")
    elif filled and recipe.run.output:
        raise _taken(output)
    return output


def _taken(output: Path) -> UserError:
    return UserError(f"--output {output} exists already. Name a new folder, or go on with it: --resume.")


def claim(output: Path, named: bool) -> Path:
    """Make the folder of a new run, with plots/ in it, and give its path: of runs that begin at once, one has it.

    For the next, a folder that `--output` names is a `UserError`; any other name gets a number.
    """
    for number in itertools.count(1):
        path = output if number == 1 else output.with_name(f"{output.name}-{number}")
        try:
            path.mkdir(parents=True, exist_ok=named)
            (path / "plots").mkdir()  # only one run can make it in a folder that was there, empty
            return path
        except FileExistsError as error:
            if named:
                raise _taken(output) from error


def begin(
    recipe: Recipe, output: Path, settings: dict[str, Any], found: Any, accelerator: Any, console: Any
) -> tuple[Path, Any]:
    """Make or clean up the folder, write config.json, start the tracker and say where everything goes.

    Gives the folder, the same for all processes, and the tracker.
    """
    from finetune import hardware, resume, tracking
    from finetune.tracker import Tracker

    accelerator.wait_for_everyone()  # all have seen that the folder is new

    def make() -> Path:
        path = output
        try:
            if recipe.run.resume:
                (output / "plots").mkdir(parents=True, exist_ok=True)
            else:
                path = claim(output, bool(recipe.run.output))
            tracking.write_json(path / "config.json", settings)
            # Lines behind the checkpoint will be written again.
            lines = [json.dumps(line) + "\n" for line in (found.progress.history if found else [])]
            if recipe.run.resume:
                tracking.write_text(output / "metrics.jsonl", "".join(lines))
            for leftover in (WISH, "summary.json"):
                (path / leftover).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"--output {output} cannot be written: {error.strerror}.") from error
        return path

    output = hardware.from_main(accelerator, make)
    accelerator.project_configuration.project_dir = str(output)
    accelerator.project_configuration.logging_dir = str(output / recipe.run.tracker)
    tracker = Tracker(accelerator, recipe, settings, output, found.progress.tracker if found else "")
    if recipe.run.resume:
        console.print(f"\n{resume.told(output, found, settings)}", soft_wrap=True)
    console.print(f"\n{tracker.state}\nThe run's folder is {output}\n", soft_wrap=True)
    return output, tracker


def stopped(output: Path, checkpoint: Path, why: str, accelerator: Any, tracker: Any, console: Any) -> None:
    """Say that the run ends here, on request, and how to go on; leave word of it for scripts."""
    if accelerator.is_main_process:
        (output / WISH).write_text(f"Stopped by {why or 'another process'} after {checkpoint}.\n")
    tracker.finish()
    console.print(
        f"\nStopped{f' by {why}' if why else ''}. Everything is in {checkpoint}.\n"
        f"Go on with the same command and --resume --output {output}",
        soft_wrap=True,
    )
    accelerator.wait_for_everyone()  # a launcher ends all when the first one ends


def charts(recipe: Recipe) -> beside.Beside | None:
    """A process that will draw the run's charts, and imports what it needs beside the run; None where that is no gain.

    To be called before torch is imported.
    """
    run, main_process = recipe.run, os.environ.get("RANK", "0") == "0"
    draws = main_process and not (run.plan or run.preview or run.lr_find)
    return beside.Beside("finetune.charts") if draws and limits.share() > 1 and beside.can_copy() else None


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
    charts: beside.Beside | None,
    training: Training,
) -> None:
    """Write summary.json, draw the pictures and say what came out; `scores` are the best epoch's. Main process only."""
    from finetune import analysis, card, plots, runs, terminal, tracking

    tracking.write_json(output / "summary.json", result)
    tracker.summarize(result)
    analysis.save(output / "validation.safetensors", scores, result["best_epoch"])
    counts = {name: Counter(loader.dataset.split.labels) for name, loader in loaders.items()}
    card.write(runs.read(output), {s: [each[k] for k in range(len(classes))] for s, each in counts.items()})
    try:
        plots.draw_all(output / "plots", history, result["best_epoch"], loaders, scores, classes, charts)
    except Exception as error:  # a picture is not worth a result
        console.print(f"The pictures could not all be drawn ({type(error).__name__}: {error}).", soft_wrap=True)
    tracker.log_end(history[-1]["step"], result, output, scores, loaders["val"].dataset, classes)
    console.print(terminal.ending(result, output, training), soft_wrap=True)
