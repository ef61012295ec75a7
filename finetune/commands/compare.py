"""`compare`: runs in one table."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.commands import RunsArgument, new_file
from finetune.config.command_line import parse
from finetune.errors import UserError
from finetune.reporting import comparison, run_folder, terminal


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
    runs = comparison.ordered([run_folder.read(folder) for folder in options.runs], options.sort)
    settings = comparison.differing(runs)
    rows = [["run", *settings, *comparison.MEASURES]] + [comparison.row(run, settings) for run in runs]
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

        charts.comparison(
            picture, {name: run.history for name, run in zip(comparison.unique_names(runs), runs, strict=True)}
        )
    return 0


def show(rows: list[list[str]], settings: int) -> None:
    """Print the table, its header first; in a file or a pipe as wide as it needs, in a terminal wrapped."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for k, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if k <= settings else "right", overflow="fold")
    for cells in rows[1:]:
        table.add_row(*cells)
    console = terminal.RunConsole(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(110, sum(max(map(len, column)) + 2 for column in zip(*rows, strict=True)))
    console.print(table)
