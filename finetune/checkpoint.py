"""Checkpoints that are whole or not there, and the way back from one.

A checkpoint is a folder named after its epoch and update. It is written under another name, its files and then the
folder are synced to disk, `SHA256SUMS` (as `sha256sum` reads and writes it) marks it complete, and only then does it
get its name; after that the older ones go. Loading reads JSON and safetensors, and runs no code.

What is not there is what is a pure function of the settings and the update: the learning rate, the order of images,
augmentation, dropout, what is frozen.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.archs import Preprocess
from finetune.errors import UserError

FORMAT = 1
SUMS = "SHA256SUMS"
NAME = re.compile(r"\d{4,}-\d{8,}")  # the epoch under way and the updates done


@dataclass
class Progress:
    """How far a run has come, beyond its tensors: what `state.json` holds."""

    epoch: int = 0
    """The epoch that is under way, from 0."""
    done: int = 0
    """Updates since the beginning; if they end this epoch, it was trained and not yet evaluated."""
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Loss and right answers over the epoch so far, summed up by this process."""
    epoch_seconds: float = 0.0
    """What the epoch has taken."""
    seconds: float = 0.0
    """What the run has taken, over all its starts."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """The lines of metrics.jsonl."""
    best: dict[str, Any] | None = None
    """The best of them."""
    tracker: str = ""
    """The tracker's id of the run."""

    def move(self, epoch: int, done: int, sums: Tensor, epoch_began: float, began: float) -> None:
        """Say where the run is now; `perf_counter` told when it and the epoch began."""
        now = time.perf_counter()
        self.epoch, self.done, self.sums = epoch, done, sums.tolist()
        self.epoch_seconds, self.seconds = now - epoch_began, now - began


@dataclass(frozen=True)
class Found:
    """A whole checkpoint on disk."""

    folder: Path
    progress: Progress
    state: dict[str, Any]
    """The rest of `state.json`."""
    skipped: list[str]
    """Newer ones that are damaged, each with what is wrong."""

    @property
    def settings(self) -> dict[str, Any]:
        """config.json's, as of the time when it was written."""
        return self.state["settings"]

    @property
    def preprocess(self) -> Preprocess:
        """The evaluation transform."""
        given = self.state["preprocess"]
        return Preprocess(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})


class Checkpoints:
    """The checkpoints of one run. Each process holds one of these; the main one writes."""

    def __init__(
        self,
        folder: Path,
        keep: int,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: Any,
        frozen: Iterable[str],
        about: dict[str, Any],
    ) -> None:
        self.folder, self.keep, self.accelerator = folder, keep, accelerator
        self.model, self.optimizer, self.average = model, optimizer, average
        self.frozen = set(frozen)  # keys of the state dict that never change: written once, then linked
        self.about = about  # settings and transform, which are written as they are
        self.best: dict[str, Tensor] = {}
        self.newest = ""

    # ---- writing -----------------------------------------------------------------------------------------------------
    def keep_best(self) -> None:
        """Remember the weights as the best so far: the average's, where there is one."""
        kept = self.average.module if self.average else self.model
        self.best = {key: value.clone() for key, value in self._moving(kept).items()}

    def best_state(self) -> dict[str, Tensor]:
        """The whole state dict with the best weights so far."""
        return {key: self.best.get(key, value) for key, value in self.model.state_dict().items()}

    def save(self, progress: Progress) -> Path:
        """Write where the run is, and give the checkpoint's path. All processes take part; the main one writes.

        Raises `UserError` where it cannot be written.
        """
        name = f"{progress.epoch:04}-{progress.done:08}"  # names sort by time
        path = self.folder / name
        sums = self.accelerator.gather(torch.tensor([progress.sums], device=self.accelerator.device)).tolist()
        if self.accelerator.is_main_process and name != self.newest:
            try:
                self._write(path, asdict(progress) | {"sums": sums})
            except (OSError, SafetensorError) as error:
                shutil.rmtree(self._aside(path), ignore_errors=True)
                newest = max(names(self.folder), default=None)
                last = f"the last whole one is {newest.name}" if newest else "there is none before it"
                why = getattr(error, "strerror", None) or error
                raise UserError(
                    f"the checkpoint {path} cannot be written ({why}); {last}. Make room, then go on with --resume."
                ) from error
        self.newest = name
        return path

    def _write(self, path: Path, progress: dict[str, Any]) -> None:
        aside = self._aside(path)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        state = {"format": FORMAT, **self.about, "progress": progress, "rates": rates}
        tensors = {"model": self._moving(self.model), "optimizer": self._optimizer_state(), "best": self.best}
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        if self.average:
            tensors["average"] = self._moving(self.average.module)
            state["averaged"] = int(self.average.n_averaged)
        for name, held in tensors.items():
            save_file(held, aside / f"{name}.safetensors")
        (aside / "state.json").write_text(json.dumps(state))
        known = self._link_frozen(aside)
        write_sums(aside, known)
        aside.rename(path)
        sync(self.folder)
        for old in sorted(names(self.folder))[: -self.keep]:
            gone = self._aside(old)
            old.rename(gone)  # from now on it is none: a removal that is cut short leaves no damaged one
            shutil.rmtree(gone)

    def _link_frozen(self, aside: Path) -> dict[str, str]:
        """Put what never changes beside the rest, and give its checksum if it is known.

        It is linked from the last but one, so that the newest two share no file, and damage to one spares the other.
        """
        target, older = aside / "frozen.safetensors", sorted(names(self.folder))
        try:
            one = older[-min(self.keep, 2)]
            os.link(one / target.name, target)
            return {target.name: read_sums(one)[target.name]}
        except (IndexError, OSError, KeyError, ValueError):  # too early, or a file system without links
            target.unlink(missing_ok=True)
            state = {key: value for key, value in self.model.state_dict().items() if key in self.frozen}
            save_file({key: to_disk(value) for key, value in state.items()}, target)
            return {}

    def _moving(self, model: nn.Module) -> dict[str, Tensor]:
        return {key: to_disk(value) for key, value in model.state_dict().items() if key not in self.frozen}

    def _optimizer_state(self) -> dict[str, Tensor]:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return {
            f"{names[parameter]}/{key}": to_disk(value)
            for parameter, held in self.optimizer.state.items()
            for key, value in held.items()
            if value is not None  # SGD before its first step
        }

    @staticmethod
    def _aside(path: Path) -> Path:
        return path.with_name(f".{path.name}")

    # ---- the way back ------------------------------------------------------------------------------------------------
    def load(self, found: Found) -> Progress:
        """Put everything back that `save` wrote, and give this process's progress."""
        frozen, moving = (load_file(found.folder / f"{name}.safetensors") for name in ("frozen", "model"))
        self.model.load_state_dict(frozen | moving)
        parameters = dict(self.model.named_parameters())
        for key, value in load_file(found.folder / "optimizer.safetensors").items():
            name, _, kind = key.rpartition("/")
            parameter = parameters[name]
            # In the parameter's own memory layout, which fused optimizers take for granted.
            empty = torch.empty_like(parameter if value.shape == parameter.shape else value, device=parameter.device)
            self.optimizer.state[parameter][kind] = empty.copy_(value)
        for group, rate in zip(self.optimizer.param_groups, found.state["rates"], strict=True):
            group["lr"] = rate
        if self.average:
            self.average.module.load_state_dict(frozen | load_file(found.folder / "average.safetensors"))
            self.average.n_averaged.fill_(found.state["averaged"])
        if self.accelerator.scaler is not None and "scaler" in found.state:
            self.accelerator.scaler.load_state_dict(found.state["scaler"])
        self.best = load_file(found.folder / "best.safetensors")
        self.newest = found.folder.name
        sums, rank = found.progress.sums, self.accelerator.process_index
        if len(sums) == self.accelerator.num_processes:
            return replace(found.progress, sums=sums[rank])
        # Another number of processes: the main one takes it all over.
        return replace(found.progress, sums=torch.tensor(sums).sum(0).tolist() if rank == 0 else [0.0, 0.0])


# ---- what is on disk -------------------------------------------------------------------------------------------------
def to_disk(value: Tensor) -> Tensor:
    """A tensor as safetensors takes it."""
    return value.detach().cpu().contiguous()


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk itself."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def digest(path: Path) -> str:
    """A file's SHA-256."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def write_sums(folder: Path, known: dict[str, str]) -> None:
    """Sync a folder's files and write their checksums, some of which may be known."""
    files = sorted(path for path in folder.iterdir())
    for path in files:
        sync(path)
    (folder / SUMS).write_text("".join(f"{known.get(path.name) or digest(path)}  {path.name}\n" for path in files))
    sync(folder / SUMS)
    sync(folder)


def read_sums(folder: Path) -> dict[str, str]:
    """Checksums by file name; a `ValueError` where the list cannot be read."""
    text = (folder / SUMS).read_bytes().decode("ascii")
    sums = {name: found for found, name in re.findall(r"^([0-9a-f]{64})  (.+)$", text, re.MULTILINE)}
    if not sums or text != "".join(f"{found}  {name}\n" for name, found in sums.items()):
        raise ValueError("it is not as it was written")
    return sums


def names(folder: Path) -> list[Path]:
    """The checkpoints by name, in no order."""
    return [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint: its files must be those of its list, each with its checksum."""
    try:
        sums = read_sums(folder)
    except (OSError, ValueError) as error:
        return f"{SUMS} cannot be read ({error})"
    there = {path.name for path in folder.iterdir()} - {SUMS}
    if missing := sums.keys() - there:
        return f"{min(missing)} is missing"
    if extra := there - sums.keys():
        return f"{min(extra)} is not in {SUMS}"
    for name, expected in sums.items():
        if digest(folder / name) != expected:
            return f"{name} does not match its checksum"
    return None


def find(folder: Path) -> Found | None:
    """The newest whole checkpoint in `folder`, or None where there never was one.

    Raises `UserError` where there are some and none is whole, or where it is of a newer format.
    """
    skipped = []
    for path in sorted(names(folder), reverse=True):
        if wrong := damage(path):
            skipped.append(f"{path.name}: {wrong}")
            continue
        state = json.loads((path / "state.json").read_text())
        if state["format"] > FORMAT:
            raise UserError(f"{path} was written by a newer version (format {state['format']}). Update this one.")
        return Found(path, Progress(**state["progress"]), state, skipped)
    if skipped:
        raise UserError(f"no checkpoint in {folder} is whole ({'; '.join(skipped)}). Remove it to start anew.")
    return None
