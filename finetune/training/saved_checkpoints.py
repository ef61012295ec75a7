"""A run's checkpoints on disk: their names, the newest whole one, and what its state.json must hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config.schema import Number, problem
from finetune.config.settings import PositiveInt
from finetune.errors import UserError
from finetune.models.architectures import Preprocess
from finetune.runtime import files
from finetune.training.state import RECORD, SAVED, Count

FORMAT = 3
NAME = re.compile(r"\d{4,}-\d{8,}")  # epoch and step
# The entries of state.json, and those of its settings that resuming reads.
ENTRIES = {"settings": dict, "preprocess": dict, "state": dict, "sums": list[list[Number]], "rates": list[Number]}
OPTIONAL = {"averaged": Count, "scaler": dict, "keep_batchnorm": bool}
NEEDED = {"epochs": PositiveInt, "versions": dict, "threads": int, "image_sizes": str}


@dataclass(frozen=True)
class Found:
    """A whole checkpoint on disk."""

    folder: Path
    saved: dict[str, Any]
    """The content of `state.json`."""
    damaged: dict[Path, str]
    """Newer checkpoints that are damaged, each with the reason."""

    @property
    def state(self) -> dict[str, Any]:
        """The run's state, as `State.as_json` gives it."""
        return self.saved["state"]

    @property
    def settings(self) -> dict[str, Any]:
        """The content of config.json when the checkpoint was written."""
        return self.saved["settings"]

    @property
    def keep_batchnorm(self) -> bool | None:
        """Whether BatchNorm keeps its statistics; None in checkpoints that do not say so."""
        return self.saved.get("keep_batchnorm")

    @property
    def preprocess(self) -> Preprocess:
        """The evaluation transform."""
        return Preprocess.from_json(self.saved["preprocess"])


def name_of(epoch: int, step: int) -> str:
    """A checkpoint's name; names sort by time."""
    return f"{epoch:04}-{step:08}"


def names(folder: Path) -> list[Path]:
    """The checkpoints in a folder, in no order."""
    return [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []


def find(folder: Path) -> Found | None:
    """The newest whole checkpoint in a folder; None where there is none at all.

    Raises `UserError` where there are some but none is whole, and where the newest is of another format.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is no folder: delete it, and the run begins anew.")
    damaged: dict[Path, str] = {}
    for path in sorted(names(folder), reverse=True):
        if wrong := files.damage(path):
            damaged[path] = wrong
            continue
        try:
            saved = files.read_json(path / "state.json")
            wrong = _wrong(path.name, saved)
        except UserError as error:
            wrong = str(error)
        if wrong:
            damaged[path] = wrong
            continue
        if saved["format"] != FORMAT:
            age = "a newer" if saved["format"] > FORMAT else "an older"
            raise UserError(
                f"{path} was written by {age} version of this project (format {saved['format']}; this one reads "
                f"{FORMAT}). Resume the run with that version, or start anew with another --output."
            )
        return Found(path, saved, damaged)
    if damaged:
        listed = "; ".join(f"{path.name}: {wrong}" for path, wrong in damaged.items())
        raise UserError(f"no checkpoint in {folder} is whole ({listed}). Delete it to start anew.")
    return None


def _wrong(name: str, saved: dict[str, Any]) -> str:
    """What is wrong with the content of a checkpoint's state.json; "" where nothing is, or it is of another format."""
    if wrong := problem(saved, {"format": PositiveInt}):
        return f"state.json: {wrong}"
    if saved["format"] != FORMAT:
        return ""
    if wrong := problem(saved, ENTRIES, OPTIONAL) or problem(saved["settings"], NEEDED):
        return f"state.json: {wrong}"
    state = saved["state"]
    if wrong := problem(state, SAVED) or ", ".join(sorted(f"{key} is unknown" for key in state.keys() - SAVED)):
        return f"state.json: state: {wrong}"
    records = [*state["history"], *([state["best"]] if state["best"] else [])]
    if wrong := next(filter(None, (problem(record, RECORD) for record in records)), ""):
        return f"state.json: history: {wrong}"
    try:
        Preprocess.from_json(saved["preprocess"])
    except ValueError as error:
        return f"state.json: preprocess: {error}"
    if any(len(row) != 3 for row in saved["sums"]) or not saved["sums"]:
        return "state.json: sums are three numbers of each process"
    if name != name_of(state["epoch"], state["step"]):
        return f"state.json is of epoch {state['epoch']} and step {state['step']}"
    return ""
