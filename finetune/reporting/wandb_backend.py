"""Weights & Biases: metrics, pictures, the worst errors, the model; offline where there is no key or no network."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import numpy as np
from torch import Tensor

from finetune.data.dataset import Draw

if TYPE_CHECKING:
    from finetune.reporting.trackers import Results, Start

USERS_DATA_DIR = os.environ.get("WANDB_DATA_DIR")  # before a run sets its own
WORST = 20  # errors in the table
LARGEST_CHART = 100  # classes of W&B's own confusion chart, whose table takes 10 000 rows


def start(run: Start) -> str:
    """Start the run, online where that works at once, else offline; returns a line for the console.

    W&B's reports on its own use and errors stay off unless the variable says otherwise.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    mode, reason = choose_mode()
    if mode == "disabled":
        return f"W&B: disabled ({reason})"
    if mode == "online":
        try:
            _start(run, "online")
            return "W&B: online"
        except Exception:  # whatever the server rejects can be logged offline
            reason = "the server did not accept the run"
    _start(run, "offline")
    return f"W&B: offline ({reason})"


def _start(run: Start, mode: str) -> None:
    import wandb

    limits = {
        # A slow server delays neither the start nor, beyond a minute, the end: `wandb sync` sends the rest later.
        "init_timeout": 15,
        "finish_timeout": 60 if mode == "online" else 0,
        "x_transaction_log_flush_interval": 1.0,  # a hard kill loses one second of history instead of fifteen
    }
    recipe = run.recipe
    options = {
        "dir": str(run.output),
        "name": run.output.name,
        "group": recipe.recipe,
        "tags": [tag[:64] for tag in (recipe.recipe, recipe.net.model, Path(recipe.images.data).name) if tag],
        "mode": mode,
        "id": run.id,
        "resume": "allow" if run.resumed and mode == "online" else None,
        "settings": wandb.Settings(silent=True, **limits),
    }
    # Artifacts and table images are staged there; W&B's default is the home folder.
    os.environ["WANDB_DATA_DIR"] = USERS_DATA_DIR or str(run.output.absolute() / "wandb")
    run.accelerator.init_trackers(recipe.run.project, run.config, {"wandb": options})


def log_summary(run: Any, summary: dict[str, Any]) -> None:
    """Put summary.json's values into the run's summary."""
    run.summary.update(summary)


def log_end(run: Any, step: int, results: Results) -> None:
    """Log the pictures, the confusion matrix as W&B's own chart, a table of the worst errors and, if asked, the model.

    The pictures are also logged as such, since a table's images lie outside the run's folder.
    """
    import wandb

    plots = sorted((results.output / "plots").glob("*.png"))
    logged: dict[str, Any] = {f"plots/{path.stem}": wandb.Image(str(path)) for path in plots}
    scores, classes = results.scores, results.classes
    labels, predicted = scores.labels.tolist(), scores.predictions[:, 0].tolist()
    if len(classes) <= LARGEST_CHART:
        logged["confusion"] = wandb.plot.confusion_matrix(y_true=labels, preds=predicted, class_names=classes)
    table = wandb.Table(["image", "true", "predicted", "probability", "loss"])
    for k in scores.losses.argsort(descending=True)[:WORST].tolist():
        if labels[k] != predicted[k]:
            image = wandb.Image(_pixels(results.samples[Draw(0, k, 1.0)][0]))
            numbers = round(scores.probabilities[k, 0].item(), 4), round(scores.losses[k].item(), 4)
            table.add_data(image, classes[labels[k]], classes[predicted[k]], *numbers)
    logged["errors"] = table
    run.log(logged, step)
    if results.log_model:
        _log_model(run, results)


def _log_model(run: Any, results: Results) -> None:
    """Log the model folder as an artifact of type `model`, its score as metadata."""
    import wandb

    score = {k: v for k, v in results.summary.items() if "accuracy" in k or "loss" in k or k == "best_epoch"}
    name = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in results.output.resolve().name)
    artifact = wandb.Artifact(name[:120], "model", metadata=score)
    artifact.add_dir(str(results.output / "model"))
    run.log_artifact(artifact, aliases=["best"])


def _pixels(image: Tensor) -> np.ndarray:
    """An image (C, H, W), uint8 or in [0, 1], as (H, W, 3) bytes: its first three channels, or its first in grey."""
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    shown = shown if shown.dtype.itemsize == 1 else (shown * 255).round().byte()
    return shown.permute(1, 2, 0).numpy()


def choose_mode() -> tuple[str, str]:
    """`online`, `offline` or `disabled`, and the reason, in at most two seconds and without asking the user."""
    import wandb

    asked = os.environ.get("WANDB_MODE", "").lower()
    if asked in ("offline", "dryrun"):
        return "offline", "WANDB_MODE"
    if asked == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return "disabled", "WANDB_MODE"
    settings = wandb.setup().settings
    if not (settings.api_key or settings.identity_token_file or _has_netrc(settings.base_url)):
        return "offline", "no API key: `wandb login` stores one"
    address = urlparse(settings.base_url)
    if not _is_reachable(address.hostname or "", address.port or (443 if address.scheme == "https" else 80)):
        return "offline", f"{address.hostname} cannot be reached"
    return "online", ""


def _has_netrc(url: str) -> bool:
    from requests.utils import get_netrc_auth

    return get_netrc_auth(url) is not None


def _is_reachable(host: str, port: int, seconds: float = 2.0) -> bool:
    """Whether the host accepts a connection. In a thread, since a name lookup has no timeout of its own."""
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
