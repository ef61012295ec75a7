"""The records of a run: config.json, a record of metrics.jsonl per epoch, summary.json."""

from __future__ import annotations

import json
import platform
import subprocess
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from finetune import starter
from finetune.config.settings import Recipe
from finetune.data.types import ImageSet
from finetune.errors import UserError
from finetune.recipes import depth_name
from finetune.runtime import files
from finetune.training.evaluation import Scores
from finetune.training.head_solver import Fit
from finetune.training.loss import check_finite
from finetune.training.metrics import calibration
from finetune.training.state import State

PACKAGES = ("torch", "torchvision", "accelerate", "wandb", "safetensors", "pillow", "numpy")
MORE_METRICS = ("val_macro_f1", "val_balanced_accuracy", "val_auroc")
PATHS = ("data", "data_root", "exclude")  # absolute in config.json: commands may run in another folder
HEAD_FIELDS = ("l2", "views", "fold_loss", "fold_accuracy", "fold_accuracy_sd")  # of a solved head's record


def config(recipe: Recipe, imageset: ImageSet, accelerator: Accelerator) -> dict[str, Any]:
    """config.json: every resolved setting, and what reproducing it needs: classes, processes, versions, commit."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        **settings(recipe),
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


def settings(recipe: Recipe) -> dict[str, Any]:
    """Every resolved setting of a recipe, as config.json has it."""
    flat = {"recipe": recipe.recipe}
    for section in (recipe.net, recipe.images, recipe.training, recipe.depths, recipe.run):
        flat |= asdict(section)
    for action in ("plan", "json", "preview", "lr_find", "resume"):
        del flat[action]
    for name in PATHS:
        if flat[name] and flat[name] not in starter.PARTS:
            with suppress(UserError, PermissionError):  # a user without a home folder, or with a closed one
                path = files.expanded(flat[name])
                flat[name] = path.absolute() if path.exists() else flat[name]
    flat = {name: str(value) if isinstance(value, Path) else value for name, value in flat.items()}
    return json.loads(json.dumps(flat))  # as read back: tuples are lists


def _commit() -> str | None:
    try:
        here = Path(__file__).parent
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def epoch_record(
    state: State,
    optimizer: torch.optim.Optimizer,
    depths: int,
    scores: dict[str, float],
    accelerator: Accelerator,
    seconds: float,
) -> dict[str, Any]:
    """A record of metrics.jsonl, in which epochs count from 1. Collective.

    `scores` are those of `Scores.record`, and `seconds` is the time of the training steps. The rate of a depth that is
    still frozen is 0, so that the file shows when it starts. Raises `UserError` where a loss is not finite.
    """
    loss, correct, images = accelerator.reduce(state.sums).tolist()
    check_finite(loss + scores["val_loss"], state.epoch)
    rates = {
        depth_name(group["depth"], depths): group["lr"] if state.epoch >= group["start"] else 0.0
        for group in optimizer.param_groups
    }
    return {
        "epoch": state.epoch + 1,
        "step": state.step,
        "lr": rates,
        "train_loss": loss / images,
        "train_accuracy": correct / images,
        **scores,
        "images_per_second": images / seconds,
        "seconds": state.epoch_clock.seconds,
    }


def head_record(
    number: int,
    fit: Fit,
    views: int,
    state: State,
    optimizer: torch.optim.Optimizer,
    depths: int,
    scores: dict[str, float],
) -> dict[str, Any]:
    """A record of metrics.jsonl for a solved head: the `number`-th on the path of strengths, or 0 before training.

    `scores` are those of `Scores.record`. Beside an epoch's fields, with rates of 0, it has `l2`, `views` and the
    scores of the folds where there are some.
    """
    folds = {f"fold_{name}": value for name, value in asdict(fit.folds).items()} if fit.folds else {}
    seconds = state.epoch_clock.seconds
    return {
        "epoch": number,
        "step": state.step,
        "lr": {depth_name(group["depth"], depths): 0.0 for group in optimizer.param_groups},
        "train_loss": fit.train_loss,
        "train_accuracy": fit.train_accuracy,
        **scores,
        "images_per_second": 0.0,
        "seconds": seconds,
        "l2": fit.l2,
        "views": views,
        **folds,
    }


def summary(
    state: State,
    epochs: int,
    scores: dict[str, Scores],
    calibrated: dict[str, Scores],
    temperature: float,
    loaders: dict[str, Any],
    accelerator: Accelerator,
) -> dict[str, Any]:
    """summary.json; `scores` are the best weights' by split, `calibrated` those of the saved model.

    The calibration errors are of the test images where there are some, else of the validation images, on which the
    temperature was fitted.
    """
    best, split = state.best, "test" if "test" in scores else "val"
    tested = {"test_accuracy": scores["test"].accuracy} if "test" in scores else {}
    before, after = (calibration(found[split].first()).error for found in (scores, calibrated))
    return {
        "best_epoch": best["epoch"],
        "best_val_accuracy": best["val_accuracy"],
        "best_val_loss": best["val_loss"],
        **{f"best_{name}": best[name] for name in MORE_METRICS if name in best},
        "total_seconds": state.run_clock.seconds,
        "stopped_early": state.epoch < epochs,
        "epochs_run": state.epoch,
        **{name: best[name] for name in (*HEAD_FIELDS, "interpolation") if name in best},
        "calibrated_val_loss": calibrated["val"].loss,
        "calibration_error": after,
        "calibration_error_before": before,
        "temperature": temperature,
        **{f"{name}_images": len(loader.dataset) for name, loader in loaders.items()},
        "num_processes": accelerator.num_processes,
        "accumulate": state.accumulate,
        "precision": accelerator.mixed_precision,
        "device": accelerator.device.type,
        **tested,
    }


def without_copies(scores: dict[str, Scores], leaked: dict[str, list[int]]) -> dict[str, float]:
    """Fields of summary.json: how many images of a split are copies of training images, and the accuracy of the rest.

    `leaked` has their positions, by split. A split without them, or of them alone, has no fields.
    """
    found: dict[str, float] = {}
    for name, copies in leaked.items():
        if copies and len(copies) < len(scores[name].labels):
            kept = torch.ones(len(scores[name].labels), dtype=torch.bool)
            kept[copies] = False
            correct = scores[name].predictions[:, 0] == scores[name].labels
            accuracy = correct[kept].double().mean().item()
            found |= {f"{name}_copies": len(copies), f"{name}_accuracy_without_copies": accuracy}
    return found
