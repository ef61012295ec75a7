"""What a run left on disk besides its model: its settings, its history, its summary."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import UserError

KEYS = {"epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "images_per_second"}


@dataclass(frozen=True)
class RunFiles:
    """A run's folder, read."""

    folder: Path
    config: dict[str, Any]
    """config.json: every setting."""
    history: list[dict[str, Any]]
    """The lines of metrics.jsonl, at least one."""
    summary: dict[str, Any]
    """summary.json; of a run that has not ended, what can be said of it so far."""
    ended: bool

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def read(folder: Path) -> RunFiles:
    """Read a run's folder; a `UserError` where it is none, or where no epoch was finished."""
    folder = folder.expanduser()
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} is no run: it {what}. Give a run's folder, such as runs/finetune-20250101-120000.")
    config = read_json(folder / "config.json")
    history = []
    if (folder / "metrics.jsonl").is_file():
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            history.append(_object(line, folder / "metrics.jsonl"))
    if not history:
        raise UserError(f"{folder} has not finished an epoch: there is nothing to look at yet.")
    if any(not line.keys() >= KEYS for line in history):
        raise UserError(f"{folder / 'metrics.jsonl'} lacks {', '.join(sorted(KEYS - history[0].keys()))}.")
    ended = (folder / "summary.json").is_file()
    return RunFiles(folder, config, history, read_json(folder / "summary.json") if ended else _so_far(history), ended)


def _so_far(history: list[dict[str, Any]]) -> dict[str, Any]:
    best = max(history, key=lambda line: (line["val_accuracy"], -line["val_loss"]))
    return {
        "best_epoch": best["epoch"],
        "best_val_accuracy": best["val_accuracy"],
        "best_val_loss": best["val_loss"],
        "epochs_run": len(history),
        "total_seconds": sum(line["seconds"] for line in history),
    }


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object; a `UserError` where it does not."""
    try:
        return _object(path.read_text(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


def _object(text: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object.")
    return value
