"""What a run prints: a line per epoch, the remaining time, warnings, the ending."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from finetune.config.settings import Rate, Training
from finetune.training.schedule import AUTO_HIGHEST

TIMED = 10.0  # seconds of training before the estimate


class RunConsole(Console):
    """Rich's console, without its silent exit where the reader of the output, such as `head`, has closed the pipe."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console(main_process: bool) -> Console:
    """The console of a run: silent on all but the main process, at least 110 columns wide in a log file."""
    options = {"quiet": not main_process, "highlight": False, "markup": False}  # a path may hold [brackets]
    console = RunConsole(**options)
    return console if console.is_terminal else RunConsole(**options, width=110)


class TimeEstimate:
    """Prints once, after some seconds of training, how long the remaining steps will take."""

    def __init__(self, steps: int, console: Console) -> None:
        """`steps` are those of the whole run."""
        self.steps, self.console = steps, console
        self.first: tuple[int, float] | None = None
        self.printed = False

    def update(self, step: int) -> None:
        """Print the estimate if it is due after so many steps."""
        if self.printed:
            return
        now = time.perf_counter()
        if self.first is None:  # the first step is slower than the others
            self.first = step, now
        elif now - self.first[1] > TIMED:
            left = (self.steps - step) * (now - self.first[1]) / (step - self.first[0])
            self.console.print(
                f"About {duration(left)} for the remaining {self.steps - step} steps, without validation."
            )
            self.printed = True


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def epoch_line(record: dict[str, Any], epochs: int, improved: bool) -> str:
    """One epoch, or one solved head, in one line, from its record in metrics.jsonl."""
    if "l2" in record:
        held_out = ""
        if "fold_loss" in record:
            accuracy = f"{record['fold_accuracy']:.4f} ± {record['fold_accuracy_sd']:.4f}"
            held_out = f"held out loss {record['fold_loss']:.4f} acc {accuracy}  "
        return (
            f"head, L2 {record['l2']:.1e}  {held_out}train loss {record['train_loss']:.4f}  "
            f"val loss {record['val_loss']:.4f} acc {record['val_accuracy']:.4f}"
            f"{'  chosen' if improved else ''}"
        )
    lr = next(iter(record["lr"].values()))  # of the head, or else of the trained depth that is nearest to it
    return (
        f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}  lr {lr:.1e}  "
        f"train loss {record['train_loss']:.4f} acc {record['train_accuracy']:.4f}  "
        f"val loss {record['val_loss']:.4f} acc {record['val_accuracy']:.4f}  "
        f"{record['seconds']:.1f} s{'  best' if improved else ''}"
    )


def rate_line(peak: float) -> str:
    """The peak learning rate that `--lr auto` chose, with advice where the solved head leaves much to learn."""
    unsure = "; the head is unsure, so more --epochs may well give a better model" if peak == AUTO_HIGHEST else ""
    return f"peak learning rate {peak:g} (--lr auto){unsure}"


def interpolation_line(record: dict[str, Any]) -> str:
    """Weights between those before and after training in one line, from their record."""
    return (
        f"{record['interpolation']:.0%} of the way from the solved head  "
        f"val loss {record['calibrated_val_loss']:.4f} when calibrated, acc {record['val_accuracy']:.4f}"
    )


def collapse(history: list[dict[str, Any]], rates: list[Rate | None], images: int, batchnorm: bool) -> str:
    """A warning where the last epoch unfroze a depth and validation accuracy fell clearly, else "".

    Clearly: by more than two binomial standard errors of `images` validation images. `history` holds the records of
    metrics.jsonl; `batchnorm` says whether BatchNorm is trained.
    """
    epoch = history[-1]["epoch"]
    if len(history) < 2 or not any(rate and rate.start == epoch - 1 for rate in rates):
        return ""
    before, now = (record["val_accuracy"] for record in history[-2:])
    mean = (before + now) / 2
    if before - now <= 2 * math.sqrt(mean * (1 - mean) / images):
        return ""
    larger = ", or a larger --batch-size: BatchNorm is trained on its statistics" if batchnorm else ""
    return (
        f"Validation accuracy fell from {before:.4f} to {now:.4f} in epoch {epoch}, which began to train further "
        f"depths. Try a lower --lr (or --body-scale, --decay, where the recipe has it){larger}."
    )


def _without_copies(summary: dict[str, Any], split: str) -> str:
    """What the accuracy of a split is without copies of training images, where it has some."""
    if f"{split}_copies" not in summary:
        return ""
    name = {"val": "validation", "test": "test"}[split]
    accuracy, copies = summary[f"{split}_accuracy_without_copies"], summary[f"{split}_copies"]
    return f"\nWithout the {copies} {name} images that are copies of training images: {accuracy:.4f}."


def ending(summary: dict[str, Any], output: Path, training: Training) -> str:
    """The last lines of a run, from its summary."""
    stopped, chosen_by = "", training.best_by.replace("_", " ")
    if summary["stopped_early"]:
        margin = f" by {training.min_delta:g}" if training.min_delta else ""
        reasons = [f"validation {training.best_by} did not improve{margin} for {training.patience} epochs (--patience)"]
        reasons = reasons if training.patience else []
        reasons += [f"another would have exceeded {training.minutes:g} minutes (--minutes)"] if training.minutes else []
        stopped = f"Stopped early, after {summary['epochs_run']} epochs: {', or '.join(reasons)}.\n"
    accuracy = f"{summary['best_val_accuracy']:.4f}"
    where = f"in epoch {summary['best_epoch']}"
    if mixed := "interpolation" in summary:
        way = f"{summary['interpolation']:.0%} of the way from the solved head to epoch {summary['epochs_run']}"
        where = way if summary["interpolation"] else "with the solved head"
    tested = (
        f"The same {summary['val_images']} images chose the weights, so expect slightly less on other images. "
        f"A test/ split would tell."
    )
    if not summary["epochs_run"]:
        best, where = f"Validation accuracy {accuracy}", f"with L2 strength {summary['l2']:.1e}"
        held_out = ": training images that were held out chose the strength" if "fold_loss" in summary else ""
        tested = f"The validation images chose nothing{held_out}."
    elif chosen_by == "accuracy":
        best = f"{'Validation' if mixed else 'Best validation'} accuracy {accuracy}"
    else:
        best = "Validation" if mixed else "Lowest validation" if chosen_by == "loss" else "Best validation"
        best += f" {chosen_by} {summary[f'best_val_{training.best_by}']:.4f} (accuracy {accuracy})"
    if "test_accuracy" in summary:
        tested = f"Test accuracy of that model: {summary['test_accuracy']:.4f}."
    return (
        f"\n{stopped}{best} {where}, after {summary['total_seconds']:.0f} s in all.\n"
        f"{tested}{''.join(_without_copies(summary, name) for name in ('val', 'test'))}\n"
        f"Model     {output / 'model'}\nPictures  {output / 'plots'}\nMetrics   {output / 'metrics.jsonl'}"
    )
