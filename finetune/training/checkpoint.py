"""Checkpoints, each written whole or not at all.

A checkpoint is a folder named after its epoch and step. It is written under a temporary name, synced to disk, completed
by `SHA256SUMS` (in `sha256sum`'s format), and only then renamed. After that the oldest ones are deleted. Training waits
while its tensors are copied; a thread writes them. Loading reads JSON and safetensors, and runs no code.

Not saved, because derived from settings and step: the learning rate, the order of images, augmentation, dropout, what
is frozen.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune.errors import UserError
from finetune.models import model_folder
from finetune.models.metadata import Metadata
from finetune.models.network import Network
from finetune.runtime import files
from finetune.training.loss import check_finite
from finetune.training.saved_checkpoints import FORMAT, Found, name_of, names
from finetune.training.state import State
from finetune.training.step import zero_sums

TIME_LIMIT = 0.1  # of the training time, at most, for checkpoints at the ends of epochs


class Checkpoints:
    """The checkpoints of one run. Every process holds an instance; the main process writes."""

    def __init__(
        self,
        output: Path,
        keep: int,
        accelerator: Accelerator,
        network: Network,
        optimizer: torch.optim.Optimizer,
        about: dict[str, Any],
        metadata_of: Callable[[dict[str, Any]], Metadata],
    ) -> None:
        """`output` is the run's folder, `about` holds the settings and the evaluation transform, as JSON.

        `metadata_of` gives the metadata of the model folder from the record of its epoch.
        """
        self.folder, self.model_folder, self.metadata_of = output / "checkpoints", output / "model", metadata_of
        self.keep, self.accelerator = keep, accelerator
        self.network, self.optimizer, self.about = network, optimizer, about
        self.frozen = network.frozen_keys()  # their tensors are written once, then linked
        self.best: dict[str, Tensor] = {}
        self.start: dict[str, Tensor] = {}
        """The weights before the first epoch, for `--interpolate`."""
        self.newest = ("", 0)  # the name of the last one, and its records: the solved head's has the name of the start
        self.started, self.took = 0.0, 0.0  # of the last one, in seconds
        self.writer, self.writing = ThreadPoolExecutor(1, "checkpoint"), None

    # ---- writing -----------------------------------------------------------------------------------------------------
    def keep_best(self, record: dict[str, Any]) -> None:
        """Copy the evaluated weights as the best so far and save them as the run's model; `record` is their epoch's."""
        self.best = self._changing(self.network.evaluated)
        self.save_model(record, self.best_state())

    def save_model(self, record: dict[str, Any], state: dict[str, Tensor]) -> None:
        """Save a state dict as the run's model; `record` is its epoch's."""
        if self.accelerator.is_main_process:
            model_folder.save(self.model_folder, state, self.metadata_of(record))

    def best_state(self) -> dict[str, Tensor]:
        """The complete state dict with the best weights so far."""
        return {key: self.best.get(key, value) for key, value in self.network.model.state_dict().items()}

    def save(self, state: State, optional: bool = False) -> Path:
        """Copy the run's state and tensors, and write them while training goes on; the checkpoint's path. Collective.

        An optional one is skipped if the last took more than a tenth of the time since it began. Raises `UserError`
        where the last could not be written, and on all processes where the epoch's loss is not finite on any.
        """
        name = name_of(state.epoch, state.step)
        sums = self.accelerator.gather(state.sums[None]).tolist()
        check_finite(sum(loss for loss, _, _ in sums), state.epoch)
        too_soon = optional and self.took > TIME_LIMIT * (time.monotonic() - self.started)
        if self.accelerator.is_main_process and (name, len(state.history)) != self.newest and not too_soon:
            self.finish()
            self.newest, self.started, self.took = (name, len(state.history)), time.monotonic(), math.inf
            saved = {"format": FORMAT, **self.about, "state": state.as_json(), "sums": sums}
            saved["rates"] = [group["lr"] for group in self.optimizer.param_groups]
            tensors = {"model": self._changing(self.network.model), "optimizer": self._optimizer_state()}
            tensors |= {"best": self.best} | ({"start": self.start} if self.start else {})
            if self.accelerator.scaler is not None:
                saved["scaler"] = self.accelerator.scaler.state_dict()
            if self.network.average:
                tensors["average"] = self._changing(self.network.average.module)
                saved["averaged"] = int(self.network.average.n_averaged)
            self.writing = self.writer.submit(self._write, self.folder / name, saved, tensors)
        return self.folder / name

    def finish(self) -> None:
        """Wait until the last checkpoint is on disk. Raises `UserError` where it could not be written."""
        writing, self.writing = self.writing, None
        try:
            if writing:
                writing.result()
        except (OSError, SafetensorError) as error:
            last = max(names(self.folder), default=None)
            raise UserError(
                f"the checkpoint {self.newest[0]} in {self.folder} cannot be written "
                f"({getattr(error, 'strerror', None) or error}); "
                f"{f'the last whole one is {last.name}' if last else 'there is none before it'}. "
                f"Make room, then go on with --resume."
            ) from error

    def _write(self, path: Path, saved: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> None:
        with files.atomic(path) as temporary:
            temporary.mkdir(parents=True)
            for name, held in tensors.items():
                files.save_tensors(held, temporary / f"{name}.safetensors")
            (temporary / "state.json").write_text(json.dumps(saved))
            files.write_sums(temporary, known=self._link_frozen(temporary))
        files.sync(self.folder)
        for old in sorted(names(self.folder))[: -self.keep]:
            renamed = old.with_name(f".{old.name}.old")  # an interrupted deletion then leaves no damaged checkpoint
            old.rename(renamed)
            files.remove(renamed)
        self.took = time.monotonic() - self.started

    def _link_frozen(self, folder: Path) -> dict[str, str]:
        """Link or write the frozen tensors' file in a new checkpoint; its checksum, if it is known.

        It is linked to the last checkpoint but one: damage to a file then leaves one of the newest two whole.
        """
        target, older = folder / "frozen.safetensors", sorted(names(self.folder))
        try:
            source = older[-min(self.keep, 2)]
            os.link(source / target.name, target)
            return {target.name: files.read_sums(source)[target.name]}
        except (IndexError, OSError, KeyError, ValueError):  # one of the first, or a file system without links
            target.unlink(missing_ok=True)
            state = {key: value for key, value in self.network.model.state_dict().items() if key in self.frozen}
            files.save_tensors({key: copied(value) for key, value in state.items()}, target)
            return {}

    def _changing(self, model: nn.Module) -> dict[str, Tensor]:
        return {key: copied(value) for key, value in model.state_dict().items() if key not in self.frozen}

    def _optimizer_state(self) -> dict[str, Tensor]:
        key_of = {parameter: name for name, parameter in self.network.model.named_parameters()}
        return {
            f"{key_of[parameter]}/{key}": copied(value)
            for parameter, held in self.optimizer.state.items()
            for key, value in held.items()
            if value is not None  # SGD before its first step
        }

    # ---- loading -----------------------------------------------------------------------------------------------------
    def load(self, found: Found) -> State:
        """Restore everything that `save` wrote, and return this process's state.

        `load_file` maps the files into memory, so tensors that stay are copied.
        """
        model, average = self.network.model, self.network.average
        frozen, changing = (load_file(found.folder / f"{name}.safetensors") for name in ("frozen", "model"))
        model.load_state_dict(frozen | changing)
        parameters = dict(model.named_parameters())
        for key, value in load_file(found.folder / "optimizer.safetensors").items():
            name, _, kind = key.rpartition("/")
            parameter = parameters[name]
            # In the parameter's own memory layout, which fused optimizers assume.
            empty = torch.empty_like(parameter if value.shape == parameter.shape else value, device=parameter.device)
            self.optimizer.state[parameter][kind] = empty.copy_(value)
        for group, rate in zip(self.optimizer.param_groups, found.saved["rates"], strict=True):
            group["lr"] = rate
        if average:
            average.module.load_state_dict(frozen | load_file(found.folder / "average.safetensors"))
            average.n_averaged.fill_(found.saved["averaged"])
        if self.accelerator.scaler is not None and "scaler" in found.saved:
            self.accelerator.scaler.load_state_dict(found.saved["scaler"])
        self.best = _read(found.folder / "best.safetensors")
        self.start = _read(found.folder / "start.safetensors")
        self.newest = found.folder.name, len(found.state["history"])
        if self.accelerator.is_main_process:
            leftovers = [path for path in self.folder.iterdir() if path.name.startswith(".")]
            for path in [*found.damaged, *leftovers]:
                files.remove(path)
        sums, rank = torch.tensor(found.saved["sums"], dtype=torch.float64), self.accelerator.process_index
        if len(sums) == self.accelerator.num_processes:
            own = sums[rank]
        else:  # the number of processes has changed: the main one takes them all
            own = sums.sum(0) if rank == 0 else torch.zeros(3)
        state = State.from_json(found.state, own.to(zero_sums(self.accelerator.device)))
        if state.best:  # a run that was killed may have left a newer model folder, or none
            self.save_model(state.best, self.best_state())
        return state


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, in memory; none where there is no file."""
    return {key: copied(value) for key, value in load_file(path).items()} if path.exists() else {}


def copied(value: Tensor) -> Tensor:
    """A contiguous copy on the CPU."""
    return torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
