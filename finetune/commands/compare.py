"""`compare`: runs in one table."""

from __future__ import annotations

import csv
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune.commands import RunsArgument, new_file
from finetune.config.command_line import parse
from finetune.errors import UserError
from finetune.reporting import run_folder

if TYPE_CHECKING:
    from finetune.reporting.run_folder import RunFiles

# Entries of config.json that do not change the result.
IGNORED = {
    "output", "versions", "classes", "images", "tracker", "project", "data_root", "workers", "git_commit",
    "image_sizes", "threads", "checkpoint_every", "keep_checkpoints", "cache_dir", "cache_gb", "cache_images",
    "log_every", "log_model",
}  # fmt: skip
MEASURES = ("epochs run", "best epoch", "val accuracy", "val loss", "test accuracy", "images/s", "seconds")


@dataclass(frozen=True)
class Options:
    """Compare runs in one table: the settings that differ, and the results; best first."""

    runs: RunsArgument
    """Runs' folders, two or more. A run that has not ended is shown up to its last epoch."""
    sort: Literal["accuracy", "loss", "time", "given"] = "accuracy"
    """accuracy: best validation accuracy. loss: validation loss of that epoch. time: total time. given: no sorting."""
    csv: bool = False
    """Comma-separated values."""
    markdown: bool = False
    """A table for Markdown."""
    picture: Path | None = None
    """Also draw the runs' curves in one chart: a new .png file."""


def main(arguments: list[str]) -> int:
    """Print the table."""
    options = parse(Options, "python -m finetune compare", arguments)
    if options.csv and options.markdown:
        raise UserError("--csv or --markdown: choose one.")
    picture = new_file("--picture", options.picture)
    if len(options.runs) < 2:
        raise UserError("compare takes two runs or more.")
    runs = ordered([run_folder.read(folder) for folder in options.runs], options.sort)
    settings = differing(runs)
    rows = [["run", *settings, *MEASURES]] + [row(run, settings) for run in runs]
    filled = [k for k in range(len(rows[0])) if any(cells[k] for cells in rows[1:])]
    rows = [[cells[k] for k in filled] for cells in rows]
    if options.csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    elif options.markdown:
        header, *body = [[cell.replace("|", "\\|") for cell in cells] for cells in rows]
        print("\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *body)))
    else:
        show(rows, len(settings))
    if picture:
        from finetune.reporting import charts

        charts.comparison(picture, {name: run.history for name, run in zip(unique_names(runs), runs, strict=True)})
    return 0


def ordered(runs: list[RunFiles], sort: str) -> list[RunFiles]:
    """The runs, best first by `--sort`."""
    keys = {
        "accuracy": lambda run: (-run.summary["best_val_accuracy"], run.summary["best_val_loss"]),
        "loss": lambda run: run.summary["best_val_loss"],
        "time": lambda run: run.summary["total_seconds"],
    }
    try:
        return sorted(runs, key=keys[sort]) if sort in keys else runs
    except (KeyError, TypeError) as error:
        raise UserError(f"a run's summary.json lacks {error}: the file is damaged, or another program's.") from error


def differing(runs: list[RunFiles]) -> list[str]:
    """The settings that differ between runs, in config.json's order."""
    names = [name for name in dict.fromkeys(name for run in runs for name in run.config) if name not in IGNORED]
    return [name for name in names if any(run.config.get(name) != runs[0].config.get(name) for run in runs)]


def row(run: RunFiles, settings: list[str]) -> list[str]:
    """A run's cells: name, settings, measures."""
    summary = run.summary
    speed = statistics.median(record["images_per_second"] for record in run.history)
    test_accuracy = summary.get("test_accuracy")
    return [
        run.name + ("" if run.ended else " (not ended)"),
        *(as_typed(run.config.get(name)) for name in settings),
        str(summary["epochs_run"]),
        str(summary["best_epoch"]),
        f"{summary['best_val_accuracy']:.4f}",
        f"{summary['best_val_loss']:.4f}",
        "" if test_accuracy is None else f"{test_accuracy:.4f}",
        f"{speed:.0f}",
        f"{summary['total_seconds']:.0f}",
    ]


def as_typed(value: Any) -> str:
    """A setting as on the command line."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)


def unique_names(runs: list[RunFiles]) -> list[str]:
    """A different name for each run: its folder's, or its path where two folders have the same name."""
    names = [run.name for run in runs]
    return [str(run.folder) if names.count(run.name) > 1 else run.name for run in runs]


def show(rows: list[list[str]], settings: int) -> None:
    """Print the table, its header first; in a file or a pipe as wide as it needs, in a terminal wrapped."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for k, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if k <= settings else "right", overflow="fold")
    for cells in rows[1:]:
        table.add_row(*cells)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(110, sum(max(map(len, column)) + 2 for column in zip(*rows, strict=True)))
    console.print(table)
