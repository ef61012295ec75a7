"""`compare`: any number of runs in one table."""

from __future__ import annotations

import csv
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from finetune import runs
from finetune.commands import must_be_new, parse
from finetune.errors import UserError

if TYPE_CHECKING:
    from finetune.runs import RunFiles

# What does not say how a run was trained.
NO_SETTING = {
    *("output", "versions", "classes", "images", "tracker", "project", "data_root", "workers", "git_commit"),
    *("checkpoint_every", "keep_checkpoints", "cache_dir", "cache_gb", "cache_images", "log_every", "log_model"),
}
MEASURES = ("epochs run", "best epoch", "val accuracy", "val loss", "test accuracy", "images/s", "seconds")


@dataclass(frozen=True)
class Options:
    """One table of runs: the settings in which they differ, and what came out; the best first."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Runs' folders, two or more. A run that has not ended is shown as far as it is."""
    sort: Literal["accuracy", "loss", "time", "given"] = "accuracy"
    """By best validation accuracy, by the loss of that epoch, by total time, or as given."""
    csv: bool = False
    """Comma-separated values."""
    markdown: bool = False
    """A table for Markdown."""
    picture: Path | None = None
    """Also draw the runs' curves together, as a new .png file."""


def main(arguments: list[str]) -> int:
    """Print the table; the exit code."""
    options = parse(Options, "compare", arguments)
    if options.csv and options.markdown:
        raise UserError("--csv or --markdown: choose one.")
    picture = must_be_new("--picture", options.picture)
    if len(options.runs) < 2:
        raise UserError("compare takes two runs or more.")
    found = ordered([runs.read(folder) for folder in options.runs], options.sort)
    names = differing(found)
    rows = [["run", *names, *MEASURES]] + [row(run, names) for run in found]
    kept = [k for k in range(len(rows[0])) if any(line[k] for line in rows[1:])]  # no column that is empty throughout
    rows = [[line[k] for k in kept] for line in rows]
    if options.csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    elif options.markdown:
        cells = [[cell.replace("|", "\\|") for cell in line] for line in rows]
        lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
        print("\n".join(f"| {' | '.join(line)} |" for line in lines))
    else:
        show(rows, len(names))
    if picture:
        from finetune import charts

        charts.together(picture, {name: run.history for name, run in zip(unique(found), found, strict=True)})
    return 0


def ordered(found: list[RunFiles], sort: str) -> list[RunFiles]:
    """The runs, best first by `--sort`."""
    keys = {
        "accuracy": lambda run: (-run.summary["best_val_accuracy"], run.summary["best_val_loss"]),
        "loss": lambda run: run.summary["best_val_loss"],
        "time": lambda run: run.summary["total_seconds"],
    }
    try:
        return sorted(found, key=keys[sort]) if sort in keys else found
    except (KeyError, TypeError) as error:
        raise UserError(f"a run's summary.json lacks {error}: it is damaged, or another program's.") from error


def differing(found: list[RunFiles]) -> list[str]:
    """The settings that are not the same in all runs, in config.json's order."""
    keys = [key for run in found for key in run.config]
    names = [key for key in dict.fromkeys(keys) if key not in NO_SETTING]
    return [name for name in names if any(run.config.get(name) != found[0].config.get(name) for run in found)]


def row(run: RunFiles, names: list[str]) -> list[str]:
    """A run's cells: its name, the settings, the measures."""
    summary = run.summary
    speed = statistics.median(line["images_per_second"] for line in run.history)
    tested = summary.get("test_accuracy")
    return [
        run.name + ("" if run.ended else " (not ended)"),
        *(in_words(run.config.get(name)) for name in names),
        str(summary["epochs_run"]),
        str(summary["best_epoch"]),
        f"{summary['best_val_accuracy']:.4f}",
        f"{summary['best_val_loss']:.4f}",
        "" if tested is None else f"{tested:.4f}",
        f"{speed:.0f}",
        f"{summary['total_seconds']:.0f}",
    ]


def in_words(value: Any) -> str:
    """A setting as it is typed."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)


def unique(found: list[RunFiles]) -> list[str]:
    """A different name for each run: its folder's, or its path where two are the same."""
    names = [run.name for run in found]
    return [str(run.folder) if names.count(run.name) > 1 else run.name for run in found]


def show(rows: list[list[str]], settings: int) -> None:
    """The table in the terminal; with many settings, one run per column would be no better: each wraps."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    width = (
        console.width if console.is_terminal else max(110, sum(max(map(len, c)) + 2 for c in zip(*rows, strict=True)))
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for k, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if k <= settings else "right", overflow="fold")
    for line in rows[1:]:
        table.add_row(*line)
    Console(highlight=False, markup=False, width=width).print(table)
