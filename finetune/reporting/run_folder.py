"""A run's folder: its path, its files, and reading it back. Nothing here imports torch."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from finetune.config.schema import Number, problem
from finetune.config.settings import NonNegativeFloat, NonNegativeInt, Probability, Recipe
from finetune.errors import UserError, no_run
from finetune.runtime import files
from finetune.training.state import RECORD, is_better

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
SCORES, TEST_SCORES = "validation.safetensors", "test.safetensors"
LOCK, LOCK_SECONDS = ".lock", 10
RESUME_ME = "resume-me"  # marks a stopped run, for scripts that see no exit code
_locks: list[FileLock] = []  # held until the process ends
# The entries of summary.json, and those that not every run has.
RESULTS = {
    "best_epoch": NonNegativeInt, "epochs_run": NonNegativeInt, "best_val_accuracy": Probability,
    "best_val_loss": Number, "total_seconds": NonNegativeFloat,
}  # fmt: skip
MORE_RESULTS = {
    "test_accuracy": Probability, "train_images": int, "val_images": int, "test_images": int, "l2": Number,
    "interpolation": Probability, "temperature": Number, "calibration_error_before": Number,
    "calibration_error": Number,
}  # fmt: skip


# ---- before and during the run ---------------------------------------------------------------------------------------
def choose(recipe: Recipe) -> Path:
    """The path of the run's folder, not made yet. It must be new or empty, or with `--resume` a run's.

    The default name holds the time; `claim` appends a number where another run has it.
    """
    run = recipe.run
    if run.resume and not run.output:
        raise UserError("--resume needs --output: the folder of the run to go on with.")
    default = Path("runs") / f"{recipe.recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    output = files.expanded(run.output) if run.output else default
    try:
        str(output.absolute()).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"--output {output}: safetensors cannot write to a path that is not UTF-8. Name another."
        ) from error
    if run.resume and not (output / CONFIG).exists() and any(output.glob(f"fold-*/{CONFIG}")):
        raise UserError(f"--resume: {output} is of a cross-validation. Give its --folds, or name the run of a fold.")
    if run.resume and not (output / CONFIG).exists():
        raise UserError(f"--resume: {output} is no run's folder. Name one with --output, or leave --resume out.")
    if run.output and not run.resume and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise _taken(output)
    return output


def claim(output: Path, named: bool) -> Path:
    """Make the folder of a new run and return its path; of several runs that start at once, one gets it.

    The others get a `UserError` if `--output` names the folder, else a number behind the default name.
    """
    for number in itertools.count(1):
        path = output if number == 1 else output.with_name(f"{output.name}-{number}")
        try:
            path.mkdir(parents=True, exist_ok=named)
            (path / "plots").mkdir()  # only one run can make it
            return path
        except FileExistsError as error:
            if named:
                raise _taken(output) from error
    raise AssertionError("unreachable: the numbers do not end")


def _lock(output: Path) -> None:
    """Keep other processes' runs out of a folder until this process ends. Raises `UserError` where one is writing."""
    try:
        # A singleton is taken again by the process that holds it. A killed run's workers may hold it for a moment.
        _locks.append(FileLock(output / LOCK, timeout=LOCK_SECONDS, is_singleton=True))
        _locks[-1].acquire()
    except Timeout as error:
        raise UserError(f"--resume: another run is writing {output}. Wait until it has ended, or stop it.") from error
    except NotImplementedError:  # a file system without locks
        pass
    except OSError as error:
        if error.errno not in files.NO_LOCKS:
            raise


def _taken(output: Path) -> UserError:
    begun = any((output / name).exists() for name in (METRICS, SUMMARY, "checkpoints"))
    if (output / CONFIG).is_file() and not begun and any((output / "plots").glob("*.png")):
        return UserError(
            f"--output {output} holds the pictures of --preview or --lr-find. Name a new folder, or delete it."
        )
    if (output / CONFIG).is_file():
        return UserError(f"--output {output} holds a run already. Name a new folder, or go on with it: --resume.")
    if any(output.glob(f"fold-*/{CONFIG}")):
        return UserError(
            f"--output {output} holds a cross-validation already. Name a new folder, or go on with it: --resume."
        )
    return UserError(f"--output {output} exists already. Name a new or empty folder.")


def prepare(recipe: Recipe, output: Path, config: dict[str, Any], history: list[dict[str, Any]]) -> Path:
    """Make the folder, or clean up a resumed run's, and write config.json; returns the folder's final path.

    `history` replaces metrics.jsonl: epochs after the checkpoint are written again. Main process only.
    Raises `UserError` where the folder cannot be written or belongs to another run, or where one is writing it.
    """
    try:
        if recipe.run.resume:
            _lock(output)
            (output / "plots").mkdir(parents=True, exist_ok=True)
            files.write_text(output / METRICS, "".join(json.dumps(record) + "\n" for record in history))
            for leftover in (RESUME_ME, SUMMARY):
                (output / leftover).unlink(missing_ok=True)
        else:
            output = claim(output, named=recipe.run.output is not None)
            _lock(output)
        write_json(output / CONFIG, config)
    except OSError as error:
        if not recipe.run.resume:  # else the same command would find a folder that is not empty
            shutil.rmtree(output / "plots", ignore_errors=True)
            (output / LOCK).unlink(missing_ok=True)
        raise UserError(f"--output {output} cannot be written: {error.strerror}.") from error
    return output


def append_record(output: Path, record: dict[str, Any]) -> None:
    """Append an epoch's record to metrics.jsonl."""
    with (output / METRICS).open("a") as file:
        file.write(json.dumps(record) + "\n")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    files.write_text(path, json.dumps(value, indent=2) + "\n")


# ---- after the run ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RunFiles:
    """A run's folder, read."""

    folder: Path
    config: dict[str, Any]
    """config.json: every setting."""
    history: list[dict[str, Any]]
    """The records of metrics.jsonl, at least one."""
    summary: dict[str, Any]
    """summary.json, or a summary so far of a run that has not ended."""
    ended: bool

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def read(folder: Path) -> RunFiles:
    """Read a run's folder. Raises `UserError` where it is none, is damaged or has no finished epoch."""
    folder = files.expanded(folder)
    if not (folder / CONFIG).is_file():
        what = f"has no {CONFIG}" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise no_run(folder, what)
    config, history, path = files.read_json(folder / CONFIG), [], folder / METRICS
    if path.is_file():
        history = [files.parse_json(line, path) for line in files.read_text(path).splitlines()]
    if not history:
        raise UserError(f"{folder} has not finished an epoch: there is nothing to show yet ({METRICS} is empty).")
    for record in history:
        _check(path, record, RECORD)
    ended = (folder / SUMMARY).is_file()
    summary = read_summary(folder / SUMMARY) if ended else _summary_so_far(history, config.get("best_by", "accuracy"))
    return RunFiles(folder, config, history, summary, ended)


def read_summary(path: Path) -> dict[str, Any]:
    """A run's summary.json. Raises `UserError` for an entry that is missing or wrong."""
    summary = files.read_json(path)
    solved = {"l2": Number} if summary.get("epochs_run") == 0 else {}
    _check(path, summary, RESULTS | solved, MORE_RESULTS)
    return summary


def _check(path: Path, entries: dict[str, Any], table: dict[str, Any], optional: dict[str, Any] | None = None) -> None:
    if wrong := problem(entries, table, optional):
        raise UserError(f"{path} is damaged: {wrong}. Copy the run again.")


def _summary_so_far(history: list[dict[str, Any]], best_by: str) -> dict[str, Any]:
    chooses = best_by == "loss" or not any(problem(record, {f"val_{best_by}": Number}) for record in history)
    best, best_by = history[0], best_by if chooses else "accuracy"
    for record in history[1:]:
        best = record if is_better(record, best, best_by) else best
    return {
        "best_epoch": best["epoch"],
        "best_val_accuracy": best["val_accuracy"],
        "best_val_loss": best["val_loss"],
        "epochs_run": sum("l2" not in record for record in history),
        "total_seconds": sum(record["seconds"] for record in history),
    }
