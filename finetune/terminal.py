"""What a person sees: one console, one progress bar, and what is said at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader


def make_console(main_process: bool) -> Console:
    """The console of a run: silent but on the main process, at least 100 columns wide in a log file."""
    options = {"quiet": not main_process, "highlight": False, "markup": False}  # a path may hold [brackets]
    console = Console(**options)
    return console if console.is_terminal else Console(**options, width=110)


def progress(batches: DataLoader, title: str, console: Console) -> Iterator[Any]:
    """The batches, under a bar that is gone when they are. In a log file there is no bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield from bar.track(batches, total=len(batches), description=title)


def epoch_line(line: dict[str, Any], epochs: int, improved: bool) -> str:
    """One epoch in one line, from its line of metrics.jsonl."""
    return (
        f"epoch {line['epoch']:>{len(str(epochs))}}/{epochs}  lr {line['lr']['head']:.1e}  "
        f"train loss {line['train_loss']:.4f} acc {line['train_accuracy']:.4f}  "
        f"val loss {line['val_loss']:.4f} acc {line['val_accuracy']:.4f}  "
        f"{line['seconds']:.1f} s{'  best' if improved else ''}"
    )


def ending(result: dict[str, Any], output: Path) -> str:
    """The last words of a run, from its summary."""
    run = result["epochs_run"]
    why = ""
    if result["stopped_early"]:
        why = f"Stopped early, after {run} epochs: no better for --patience epochs.\n"
    tested = (
        f"Test accuracy of that model: {result['test_accuracy']:.4f}."
        if "test_accuracy" in result
        else f"The same {result['val_images']} images chose the epoch, so expect a little less on others. "
        f"A test/ split would tell."
    )
    return (
        f"\n{why}Best validation accuracy {result['best_val_accuracy']:.4f} in epoch {result['best_epoch']}, "
        f"after {result['total_seconds']:.0f} s in all.\n{tested}\n"
        f"Model     {output / 'model'}\nPictures  {output / 'plots'}\nNumbers   {output / 'metrics.jsonl'}"
    )
