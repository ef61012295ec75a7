"""What a person sees: one console, one progress bar, and what is said at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from finetune.recipe import Rate, Training


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


def collapse(history: list[dict[str, Any]], rates: list[Rate | None], images: int, batchnorm: bool) -> str:
    """A warning where the last epoch began to train further depths and its validation accuracy fell clearly, else "".

    Clearly: by more than two binomial standard errors of so many validation images. `history` holds the lines of
    metrics.jsonl.
    """
    epoch = len(history)
    if epoch < 2 or not any(rate and rate.start == epoch - 1 for rate in rates):
        return ""
    before, now = (line["val_accuracy"] for line in history[-2:])
    mean = (before + now) / 2
    if before - now <= 2 * math.sqrt(mean * (1 - mean) / images):
        return ""
    larger = ", or a larger --batch-size: BatchNorm is trained on its statistics" if batchnorm else ""
    return (
        f"Validation accuracy fell from {before:.4f} to {now:.4f} in epoch {epoch}, which began to train further "
        f"depths. Try a lower --lr (or --body-scale, --decay, where the recipe has it){larger}."
    )


def ending(result: dict[str, Any], output: Path, training: Training) -> str:
    """The last words of a run, from its summary and from what chose its best epoch."""
    by_loss = training.best_by == "loss"
    why = ""
    if result["stopped_early"]:
        least = f" by {training.min_delta:g}" if training.min_delta else ""
        why = (
            f"Stopped early, after {result['epochs_run']} epochs: validation {training.best_by} was not "
            f"{'lower' if by_loss else 'higher'}{least} for {training.patience} epochs (--patience).\n"
        )
    accuracy = f"{result['best_val_accuracy']:.4f}"
    best = (
        f"Lowest validation loss {result['best_val_loss']:.4f} (accuracy {accuracy})"
        if by_loss
        else f"Best validation accuracy {accuracy}"
    )
    tested = (
        f"Test accuracy of that model: {result['test_accuracy']:.4f}."
        if "test_accuracy" in result
        else f"The same {result['val_images']} images chose the epoch, so expect a little less on others. "
        f"A test/ split would tell."
    )
    return (
        f"\n{why}{best} in epoch {result['best_epoch']}, after {result['total_seconds']:.0f} s in all.\n{tested}\n"
        f"Model     {output / 'model'}\nPictures  {output / 'plots'}\nNumbers   {output / 'metrics.jsonl'}"
    )
