"""Accelerate's trackers, W&B first: what they are given, and that nothing they do can stop or delay a run."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from accelerate import Accelerator
from torch import Tensor, nn

from finetune.evaluate import Scores
from finetune.recipe import Recipe
from finetune.tracking import write_text


class Tracker:
    """Accelerate's tracker, held so that nothing it does can stop or delay a run. It logs on the main process."""

    def __init__(
        self, accelerator: Accelerator, recipe: Recipe, settings: dict[str, Any], output: Path, identity: str
    ) -> None:
        self.accelerator, self.state, self.run = accelerator, "No tracker", recipe.run
        self.batch_size, self.mark, self.own_data_dir = recipe.training.batch_size, (0, 0.0), False
        # The run's id, and the last step that the tracker was given, written before it is: a run that was killed, even
        # before its first checkpoint, and repeats some of its updates gives no step twice. An update counts as half a
        # step before the epoch that may end with it.
        self.ledger = output / ".tracked"
        known, step = self.ledger.read_text().split() if self.ledger.exists() else (identity, 0)
        self.resumed, self.identity, self.step = bool(known), known or uuid.uuid4().hex[:8], float(step)
        self.on = recipe.run.tracker != "none"
        if not self.on:
            return
        if accelerator.is_main_process:
            self._note()
        scalars = {key: value for key, value in settings.items() if isinstance(value, str | int | float | None)}
        if recipe.run.tracker == "tensorboard":
            self._guard(accelerator.init_trackers, "", scalars)
            self.state = f"TensorBoard: tensorboard --logdir {output}"
            return
        if recipe.run.tracker != "wandb":
            named = {"mlflow": {"run_name": output.name}}
            self._guard(accelerator.init_trackers, recipe.run.project, scalars, named)
            self.state = f"{recipe.run.tracker}: {'as it is set up' if self.on else 'off'}"
            return
        try:
            mode, why = wandb_mode()
        except Exception as error:  # settings of W&B's own that it does not take
            self.on, self.state = False, f"W&B: off ({str(error).splitlines()[0]})"
            return
        self.state = f"W&B: {mode}{f' ({why})' if why else ''}"
        if mode == "online" and not self._guard(self._wandb, recipe, settings, output, mode):
            self.on, self.state = True, "W&B: offline (the server did not take the run)"
            mode = "offline"
        if mode == "offline":
            self._guard(self._wandb, recipe, settings, output, mode)
        self.on = self.on and mode != "disabled"
        self.state = self.state if self.on or mode == "disabled" else "W&B: off"

    def _wandb(self, recipe: Recipe, settings: dict[str, Any], output: Path, mode: str) -> None:
        import wandb

        limits = {
            "init_timeout": 15,  # a slow server does not hold up the run's start,
            # nor one that has gone its end: `wandb sync` sends the rest later. Offline there is nobody to wait for.
            "finish_timeout": 60 if mode == "online" else 0,
            "x_transaction_log_flush_interval": 1.0,  # a hard kill loses a second of history, not a quarter of a minute
        }
        options = {
            "dir": str(output),
            "name": output.name,
            "group": recipe.recipe,
            "tags": [tag[:64] for tag in (recipe.recipe, recipe.net.model, Path(recipe.images.data).name) if tag],
            "mode": mode,
            "id": self.identity,
            "resume": "allow" if self.resumed and mode == "online" else None,
            "settings": wandb.Settings(silent=True, **limits),
        }
        if "WANDB_DATA_DIR" not in os.environ:  # else artifacts and tables' images wait in the home folder to be synced
            os.environ["WANDB_DATA_DIR"], self.own_data_dir = str(output.absolute() / "wandb"), True
        self.accelerator.init_trackers(recipe.run.project, settings, {"wandb": options})

    @property
    def _native(self) -> Any:
        """W&B's run, or TensorBoard's writer."""
        return self.accelerator.trackers[0].tracker

    def log_update(self, update: int, losses: Tensor, shares: Tensor, model: nn.Module) -> None:
        """Log an update (from 1) before its gradients are clipped and used, one in every `--log-every`.

        The loss is the mean over this process's images (N,) of the update's last part.
        """
        every = self.run.log_every
        if not (self.on and self.accelerator.is_main_process and every) or update % every:
            return
        if not self._is_new(update - 0.5):
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        scaler = self.accelerator.scaler
        norm = nn.utils.get_total_norm(gradients).item() / (scaler.get_scale() if scaler else 1.0)
        loss = ((losses * (shares > 0)).sum() / (shares > 0).sum().clamp(min=1)).item()
        values = {"update/loss": loss, "update/gradient_norm": norm}
        before, now = self.mark, (update, time.perf_counter())
        if before[0]:
            values["update/images_per_second"] = (update - before[0]) * self.batch_size / (now[1] - before[1])
        self.mark = now
        self._guard(self.accelerator.log, values, update)

    def log_epoch(self, line: dict[str, Any]) -> None:
        """Log a line of metrics.jsonl at its update, the rates one by one."""
        self.mark = (0, 0.0)  # what comes between two epochs is no training
        if self.on and self._is_new(line["step"]):
            rates = {f"lr/{name}": rate for name, rate in line["lr"].items()}
            values = {key: value for key, value in line.items() if key not in ("lr", "step")}
            self._guard(self.accelerator.log, values | rates, line["step"])

    def summarize(self, result: dict[str, Any]) -> None:
        """Put the figures of summary.json where the tracker keeps a run's final ones."""
        if self.on and self.accelerator.trackers[0].name == "wandb":
            self._guard(self.accelerator.trackers[0].tracker.summary.update, result)

    def _is_new(self, step: float) -> bool:
        """Whether the tracker has not been given this step yet; from now on it has."""
        if step <= self.step:
            return False
        self.step = step
        if self.accelerator.is_main_process:
            self._note()
        return True

    def _note(self) -> None:
        write_text(self.ledger, f"{self.identity} {self.step}\n")

    def log_end(
        self, done: int, result: dict[str, Any], output: Path, scores: Scores, samples: Any, classes: list[str]
    ) -> None:
        """Log the pictures, the worst mistakes and, with `--log-model`, the model; `scores` are on `samples`.

        They come behind the last of the `done` updates, once, however often the run's end is reached.
        """
        if not (self.on and self._is_new(done + 1)):
            return
        from finetune import media

        if self.accelerator.trackers[0].name == "wandb":
            logged = self._guard(media.to_wandb, self._native, done + 1, output, scores, samples, classes)
            if logged and self.run.log_model:
                self._guard(media.model_to_wandb, self._native, output, result)
        elif self.accelerator.trackers[0].name == "tensorboard":
            self._guard(media.to_tensorboard, self._native, output, result["epochs_run"])

    def finish(self) -> None:
        """Write out what is still held back."""
        if self.on:
            # Not accelerator.end_training, which also parts the processes: they still wait for each other.
            self._guard(lambda: [tracker.finish() for tracker in self.accelerator.trackers])
        if self.own_data_dir:
            os.environ.pop("WANDB_DATA_DIR", None)

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
