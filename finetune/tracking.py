"""What a run writes as it goes: its own files, always; and a tracker, which may fail without harm."""

from __future__ import annotations

import json
import math
import os
import platform
import socket
import subprocess
import threading
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from accelerate import Accelerator

from finetune.archs import depth_name
from finetune.errors import UserError
from finetune.evaluate import Scores
from finetune.recipe import Recipe

PACKAGES = ("torch", "torchvision", "accelerate", "wandb", "safetensors", "pillow", "numpy")


def config(recipe: Recipe, **found: Any) -> dict[str, Any]:
    """Every resolved setting, and what else it takes to run the same again: versions, commit, what was `found` out."""
    flat = {"recipe": recipe.recipe}
    for section in (recipe.net, recipe.images, recipe.training, recipe.depths, recipe.run):
        flat |= asdict(section)
    for question in ("plan", "json", "preview"):
        del flat[question]
    flat = {name: str(value) if isinstance(value, Path) else value for name, value in flat.items()}
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {**flat, **found, "versions": versions, "git_commit": _commit()}


def _commit() -> str | None:
    try:
        here = Path(__file__).parent
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file that is whole or not there."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(value, indent=2) + "\n")
    beside.replace(path)


def append_json(path: Path, value: dict[str, Any]) -> None:
    """Append one line."""
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")


def epoch_record(
    epoch: int,
    updates_per_epoch: int,
    optimizer: Any,
    stages: list[list[str]],
    train: list[float],
    scores: Scores,
    images_per_second: float,
    began: float,
) -> dict[str, Any]:
    """A line of metrics.jsonl, in which epochs count from 1; `train` is loss and accuracy.

    Raises `UserError` where a loss is not finite.
    """
    if not math.isfinite(total := train[0] + scores.loss):
        raise UserError(f"the loss is {total} in epoch {epoch + 1}. Lower --lr, or set --clip-norm 1.")
    return {
        "epoch": epoch + 1,
        "step": (epoch + 1) * updates_per_epoch,
        "lr": {depth_name(group["depth"], len(stages)): group["lr"] for group in optimizer.param_groups},
        "train_loss": train[0],
        "train_accuracy": train[1],
        "val_loss": scores.loss,
        "val_accuracy": scores.accuracy,
        "val_top5": scores.top5,
        "images_per_second": images_per_second,
        "seconds": time.perf_counter() - began,
    }


def better(line: dict[str, Any], best: dict[str, Any] | None, best_by: str) -> bool:
    """Whether an epoch beats the best so far: by accuracy, then loss, or by loss alone."""
    if best is None:
        return True
    if best_by == "loss":
        return line["val_loss"] < best["val_loss"]
    return (line["val_accuracy"], -line["val_loss"]) > (best["val_accuracy"], -best["val_loss"])


def summary(
    best: dict[str, Any], history: list[dict[str, Any]], epochs: int, loaders: dict[str, Any], accelerator: Accelerator
) -> dict[str, Any]:
    """What summary.json says of a run, but for its time and test accuracy."""
    return {
        "best_epoch": best["epoch"],
        "best_val_accuracy": best["val_accuracy"],
        "best_val_loss": best["val_loss"],
        "stopped_early": len(history) < epochs,
        "epochs_run": len(history),
        **{f"{name}_images": len(loader.dataset) for name, loader in loaders.items()},
        "num_processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "device": accelerator.device.type,
    }


class Tracker:
    """Accelerate's tracker, held so that nothing it does can stop or delay a run. It logs on the main process."""

    def __init__(self, accelerator: Accelerator, recipe: Recipe, settings: dict[str, Any], output: Path) -> None:
        self.accelerator, self.state = accelerator, "No tracker"
        self.on = recipe.run.tracker != "none"
        if not self.on:
            return
        scalars = {key: value for key, value in settings.items() if isinstance(value, str | int | float | None)}
        if recipe.run.tracker == "tensorboard":
            self._guard(accelerator.init_trackers, "", scalars)
            self.state = f"TensorBoard: tensorboard --logdir {output}"
            return
        try:
            mode, why = wandb_mode()
        except Exception as error:  # settings of W&B's own that it does not take
            self.on, self.state = False, f"W&B: off ({str(error).splitlines()[0]})"
            return
        self.state = f"W&B: {mode}{f' ({why})' if why else ''}"
        if mode == "online" and not self._guard(self._wandb, recipe, scalars, output, mode):
            self.on, self.state = True, "W&B: offline (the server did not take the run)"
            mode = "offline"
        if mode == "offline":
            self._guard(self._wandb, recipe, scalars, output, mode)
        self.on = self.on and mode != "disabled"
        self.state = self.state if self.on or mode == "disabled" else "W&B: off"

    def _wandb(self, recipe: Recipe, scalars: dict[str, Any], output: Path, mode: str) -> None:
        import wandb

        options = {
            "dir": str(output),
            "name": output.name,
            "group": recipe.recipe,
            "mode": mode,
            # A hard kill loses a second of history, not a quarter of a minute; a slow server does not hold up the run.
            "settings": wandb.Settings(silent=True, init_timeout=15, x_transaction_log_flush_interval=1.0),
        }
        self.accelerator.init_trackers(recipe.run.project, scalars, {"wandb": options})

    def log_epoch(self, line: dict[str, Any]) -> None:
        """Log a line of metrics.jsonl at its update, the rates one by one."""
        if self.on:
            rates = {f"lr/{name}": rate for name, rate in line["lr"].items()}
            values = {key: value for key, value in line.items() if key not in ("lr", "step")}
            self._guard(self.accelerator.log, values | rates, line["step"])

    def summarize(self, result: dict[str, Any]) -> None:
        """Put the figures of summary.json where the tracker keeps a run's final ones."""
        if self.on and self.accelerator.trackers[0].name == "wandb":
            self._guard(self.accelerator.trackers[0].tracker.summary.update, result)

    def finish(self) -> None:
        """Write out what is still held back."""
        if self.on:
            self._guard(self.accelerator.end_training)

    def _guard(self, call: Any, *arguments: Any) -> bool:
        """Whether the call succeeded; one that did not ends the tracking, and is told once."""
        try:
            call(*arguments)
        except Exception as error:  # whatever a tracker raises, training goes on
            self.on = False
            self.accelerator.trackers = []
            print(f"The tracker failed and is off ({type(error).__name__}: {error}). metrics.jsonl goes on.")
            return False
        return True


def wandb_mode() -> tuple[str, str]:
    """`online`, `offline` or `disabled`, and why, in at most two seconds and without asking anybody anything."""
    import wandb

    asked = os.environ.get("WANDB_MODE", "").lower()
    if asked in ("offline", "dryrun"):
        return "offline", "WANDB_MODE"
    if asked == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return "disabled", "WANDB_MODE"
    settings = wandb.setup().settings
    if not (settings.api_key or settings.identity_token_file or _netrc(settings.base_url)):
        return "offline", "no API key; `wandb login` makes one known"
    address = urlparse(settings.base_url)
    if not _reachable(address.hostname or "", address.port or (443 if address.scheme == "https" else 80)):
        return "offline", f"{address.hostname} cannot be reached"
    return "online", ""


def _netrc(url: str) -> bool:
    from requests.utils import get_netrc_auth

    return get_netrc_auth(url) is not None


def _reachable(host: str, port: int, seconds: float = 2.0) -> bool:
    """Whether the host takes a connection. In a thread, since looking up a name has no time limit of its own."""
    answers = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
            answers.append(True)
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)
