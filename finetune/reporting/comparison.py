"""Runs side by side: the settings that differ, results, order. Nothing here imports torch."""

from __future__ import annotations

import statistics
from typing import Any

from finetune.errors import UserError
from finetune.reporting.run_folder import RunFiles

# Entries of config.json that do not change the result.
IGNORED = {
    "output", "versions", "classes", "images", "tracker", "project", "data_root", "workers", "git_commit",
    "image_sizes", "threads", "checkpoint_every", "keep_checkpoints", "cache_dir", "cache_gb", "cache_images",
    "log_every", "log_model",
}  # fmt: skip
MEASURES = ("epochs run", "best epoch", "val accuracy", "val loss", "test accuracy", "images/s", "seconds")


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
    speeds = [record["images_per_second"] for record in run.history if "l2" not in record]  # a solved head has none
    test_accuracy = summary.get("test_accuracy")
    return [
        run.name + ("" if run.ended else " (not ended)"),
        *(as_typed(run.config.get(name)) for name in settings),
        str(summary["epochs_run"]),
        str(summary["best_epoch"]),
        f"{summary['best_val_accuracy']:.4f}",
        f"{summary['best_val_loss']:.4f}",
        "" if test_accuracy is None else f"{test_accuracy:.4f}",
        f"{statistics.median(speeds):.0f}" if speeds else "-",
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
