"""Checkpoints that are whole or not there, and the way back from one.

A checkpoint is a folder named after its epoch and update. It is written under another name, its files and then the
folder are synced to disk, `SHA256SUMS` (as `sha256sum` reads and writes it) marks it complete, and only then does it
get its name; after that the older ones go. Loading reads JSON and safetensors, and runs no code. Training waits for the
copy of its tensors; a thread does the rest.

What is not there is what is a pure function of the settings and the update: the learning rate, the order of images,
augmentation, dropout, what is frozen.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune.archs import Preprocess
from finetune.durable import damage, read_sums, save_tensors, sync, write_sums
from finetune.errors import UserError
from finetune.hardware import widest
from finetune.loss import check_finite

FORMAT = 1
SHARE = 0.1  # of the time, at most, for checkpoints at the ends of epochs
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
    damaged: dict[Path, str]
    """Newer ones, each with what is wrong."""

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
        self.began, self.took = 0.0, 0.0  # the last one, in seconds
        self.writer, self.writing = ThreadPoolExecutor(1, "checkpoint"), None

    # ---- writing -----------------------------------------------------------------------------------------------------
    def keep_best(self) -> None:
        """Remember the weights as the best so far: the average's, where there is one."""
        self.best = self._moving(self.average.module if self.average else self.model)

    def best_state(self) -> dict[str, Tensor]:
        """The whole state dict with the best weights so far."""
        return {key: self.best.get(key, value) for key, value in self.model.state_dict().items()}

    def save(self, progress: Progress, optional: bool = False) -> Path:
        """Copy where the run is, have it written while training goes on, and give the checkpoint's path.

        An optional one is left out where the last took more than a tenth of the time since: writing is work for the
        CPU and the disk. All processes take part; the main one writes. Raises `UserError` where the one before could
        not be written, and on all processes where the epoch's loss is not finite on one of them.
        """
        name = f"{progress.epoch:04}-{progress.done:08}"  # names sort by time
        device = self.accelerator.device
        sums = torch.tensor([progress.sums], dtype=widest(device), device=device)
        sums = self.accelerator.gather(sums).tolist()
        check_finite(sum(loss for loss, _ in sums), progress.epoch)
        too_soon = optional and self.took > SHARE * (time.monotonic() - self.began)
        if self.accelerator.is_main_process and name != self.newest and not too_soon:
            self.finish()
            self.newest, self.began, self.took = name, time.monotonic(), math.inf
            state = {"format": FORMAT, **self.about, "progress": asdict(progress) | {"sums": sums}}
            state["rates"] = [group["lr"] for group in self.optimizer.param_groups]
            tensors = {"model": self._moving(self.model), "optimizer": self._optimizer_state(), "best": self.best}
            if self.accelerator.scaler is not None:
                state["scaler"] = self.accelerator.scaler.state_dict()
            if self.average:
                tensors["average"] = self._moving(self.average.module)
                state["averaged"] = int(self.average.n_averaged)
            self.writing = self.writer.submit(self._write, self.folder / name, state, tensors)
        return self.folder / name

    def finish(self) -> None:
        """Wait until the last one is on the disk; a `UserError` where it could not be written."""
        writing, self.writing = self.writing, None
        try:
            if writing:
                writing.result()
        except (OSError, SafetensorError) as error:
            for rest in self.folder.glob(".*"):
                shutil.rmtree(rest, ignore_errors=True)
            last = max(names(self.folder), default=None)
            raise UserError(
                f"the checkpoint {self.newest} in {self.folder} cannot be written "
                f"({getattr(error, 'strerror', None) or error}); "
                f"{f'the last whole one is {last.name}' if last else 'there is none before it'}. "
                f"Make room, then go on with --resume."
            ) from error

    def _write(self, path: Path, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> None:
        aside = self._aside(path)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name, held in tensors.items():
            save_tensors(held, aside / f"{name}.safetensors")
        (aside / "state.json").write_text(json.dumps(state))
        known = self._link_frozen(aside)
        write_sums(aside, known)
        aside.rename(path)
        sync(self.folder)
        for old in sorted(names(self.folder))[: -self.keep]:
            gone = self._aside(old)
            old.rename(gone)  # from now on it is none: a removal that is cut short leaves no damaged one
            shutil.rmtree(gone)
        self.took = time.monotonic() - self.began

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
            save_tensors({key: copied(value) for key, value in state.items()}, target)
            return {}

    def _moving(self, model: nn.Module) -> dict[str, Tensor]:
        return {key: copied(value) for key, value in model.state_dict().items() if key not in self.frozen}

    def _optimizer_state(self) -> dict[str, Tensor]:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return {
            f"{names[parameter]}/{key}": copied(value)
            for parameter, held in self.optimizer.state.items()
            for key, value in held.items()
            if value is not None  # SGD before its first step
        }

    @staticmethod
    def _aside(path: Path) -> Path:
        return path.with_name(f".{path.name}")

    # ---- the way back ------------------------------------------------------------------------------------------------
    def load(self, found: Found) -> Progress:
        """Put everything back that `save` wrote, and give this process's progress.

        `load_file` maps the files into memory: all that stays is copied from there.
        """
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
        self.best = {key: copied(value) for key, value in load_file(found.folder / "best.safetensors").items()}
        self.newest = found.folder.name
        for path in found.damaged if self.accelerator.is_main_process else ():
            shutil.rmtree(path)  # whole ones of the same names will come
        sums, rank = found.progress.sums, self.accelerator.process_index
        if len(sums) == self.accelerator.num_processes:
            return replace(found.progress, sums=sums[rank])
        # Another number of processes: the main one takes it all over.
        return replace(
            found.progress, sums=torch.tensor(sums, dtype=torch.float64).sum(0).tolist() if rank == 0 else [0.0, 0.0]
        )


def copied(value: Tensor) -> Tensor:
    """A tensor as safetensors takes it, which training does not change any more."""
    return torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())


def names(folder: Path) -> list[Path]:
    """The checkpoints by name, in no order."""
    return [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []


def find(folder: Path) -> Found | None:
    """The newest whole checkpoint in `folder`, or None where there never was one.

    Raises `UserError` where there are some and none is whole, or where it is of a newer format.
    """
    damaged: dict[Path, str] = {}
    for path in sorted(names(folder), reverse=True):
        if wrong := damage(path):
            damaged[path] = wrong
            continue
        state = json.loads((path / "state.json").read_text())
        if state["format"] > FORMAT:
            raise UserError(f"{path} was written by a newer version (format {state['format']}). Update this one.")
        return Found(path, Progress(**state["progress"]), state, damaged)
    if damaged:
        listed = "; ".join(f"{path.name}: {wrong}" for path, wrong in damaged.items())
        raise UserError(f"no checkpoint in {folder} is whole ({listed}). Remove it to start anew.")
    return None
