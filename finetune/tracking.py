"""What a run writes into its folder as it goes: settings, a line per epoch, the summary."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from finetune.archs import depth_name
from finetune.checkpoint import Progress
from finetune.evaluate import Scores
from finetune.imagesets import ImageSet
from finetune.loss import check_finite
from finetune.recipe import Recipe

PACKAGES = ("torch", "torchvision", "accelerate", "wandb", "safetensors", "pillow", "numpy")


def config(recipe: Recipe, imageset: ImageSet, accelerator: Accelerator) -> dict[str, Any]:
    """Every resolved setting, and what else it takes to run the same again: classes, processes, versions, commit."""
    flat = {"recipe": recipe.recipe}
    for section in (recipe.net, recipe.images, recipe.training, recipe.depths, recipe.run):
        flat |= asdict(section)
    for question in ("plan", "json", "preview", "lr_find", "resume"):
        del flat[question]
    flat = {name: str(value) if isinstance(value, Path) else value for name, value in flat.items()}
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        **json.loads(json.dumps(flat)),  # as it will be read again: tuples are lists
        "classes": imageset.classes,
        "images": imageset.fingerprint(),
        "image_sizes": imageset.sizes(),
        "num_processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "mixed_precision": accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
        "versions": versions,
        "git_commit": _commit(),
    }


def _commit() -> str | None:
    try:
        here = Path(__file__).parent
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file that is whole or not there."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file that is whole or not there."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text)
    beside.replace(path)


def append_json(path: Path, value: dict[str, Any]) -> None:
    """Append one line."""
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")


def epoch_record(
    epoch: int,
    done: int,
    optimizer: Any,
    stages: list[list[str]],
    train: list[float],
    scores: Scores,
    images_per_second: float,
    seconds: float,
) -> dict[str, Any]:
    """A line of metrics.jsonl, in which epochs count from 1; `train` is loss and accuracy.

    The rate of a depth that is still frozen is 0, so that the file tells when it started. Raises `UserError` where a
    loss is not finite.
    """
    check_finite(train[0] + scores.loss, epoch)
    rates = {
        depth_name(group["depth"], len(stages)): group["lr"] if epoch >= group["start"] else 0.0
        for group in optimizer.param_groups
    }
    return {
        "epoch": epoch + 1,
        "step": done,
        "lr": rates,
        "train_loss": train[0],
        "train_accuracy": train[1],
        "val_loss": scores.loss,
        "val_accuracy": scores.accuracy,
        "val_top5": scores.top5,
        "images_per_second": images_per_second,
        "seconds": seconds,
    }


def better(line: dict[str, Any], best: dict[str, Any] | None, best_by: str) -> bool:
    """Whether an epoch beats the best so far: by accuracy, then loss, or by loss alone."""
    if best is None:
        return True
    if best_by == "loss":
        return line["val_loss"] < best["val_loss"]
    return (line["val_accuracy"], -line["val_loss"]) > (best["val_accuracy"], -best["val_loss"])


def summary(
    progress: Progress, epochs: int, scores: dict[str, Scores], loaders: dict[str, Any], accelerator: Accelerator
) -> dict[str, Any]:
    """summary.json; `scores` are the best weights', by split."""
    best, history = progress.best, progress.history
    tested = {"test_accuracy": scores["test"].accuracy} if "test" in scores else {}
    return {
        "best_epoch": best["epoch"],
        "best_val_accuracy": best["val_accuracy"],
        "best_val_loss": best["val_loss"],
        "total_seconds": progress.seconds,
        "stopped_early": len(history) < epochs,
        "epochs_run": len(history),
        **{f"{name}_images": len(loader.dataset) for name, loader in loaders.items()},
        "num_processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "device": accelerator.device.type,
        **tested,
    }
