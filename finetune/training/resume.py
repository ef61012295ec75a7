"""Resuming a run: its newest checkpoint, and the settings that may differ."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune.config.settings import Recipe
from finetune.errors import UserError
from finetune.models.network import Network
from finetune.runtime import devices, files
from finetune.training import saved_checkpoints
from finetune.training.param_groups import parameter_groups
from finetune.training.saved_checkpoints import Found

# Settings that may change when a run is resumed. Any other changes what is trained.
MAY_CHANGE = {
    *("epochs", "patience", "min_delta", "tracker", "project", "output", "checkpoint_every", "keep_checkpoints"),
    *("data", "data_root", "workers", "eval_batch_size", "accumulate", "num_processes", "device", "compile"),
    "gradient_checkpointing",
    *("cache_dir", "cache_gb", "cache_images", "log_every", "log_model"),
    "exclude",  # another file of the same content; the images themselves are compared,
}
# `mixed_precision` is what `--precision` came to, and is compared in its place.
NO_SETTING = {"versions", "threads", "image_sizes", "git_commit", "resume", "precision"}
LATE = 10.0  # seconds that a network disk may take to show a folder on every machine
EXACT_VERSIONS = ("torch", "torchvision", "accelerate", "numpy", "pillow")  # the last bits of a result depend on them


def precision(output: Path) -> str | None:
    """The mixed precision of the run in a folder; None where it cannot be read."""
    try:
        found = files.read_json(output / "config.json").get("mixed_precision")
    except UserError:
        return None
    return found if found in devices.PRECISIONS else None


def find(output: Path, config: dict[str, Any], accelerator: Accelerator) -> Found | None:
    """The newest whole checkpoint of a run, the same on all processes; None where there is none. Collective.

    Raises `UserError` where all checkpoints are damaged, where a setting of `config` differs that may not, and where
    another machine does not see the folder. Also for a finished run without checkpoints.
    """

    def verified() -> Found | None:
        found = saved_checkpoints.find(output / "checkpoints")
        changes(found.settings if found else files.read_json(output / "config.json"), config)
        if found is None and (output / "summary.json").exists():
            raise UserError(
                f"--resume: {output} is a finished run without checkpoints, so there is nothing to go on with. Start "
                f"anew with another --output."
            )
        return found

    found = devices.from_main(accelerator, verified)  # read and verified once
    if found is not None and not _appears(found.folder):
        raise UserError(f"{found.folder} is not visible on every machine: --output must be on shared storage.")
    return found


def _appears(folder: Path) -> bool:
    """Whether a folder is visible on this machine, within `LATE` seconds."""
    deadline = time.monotonic() + LATE
    while not folder.is_dir():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def as_begun(recipe: Recipe, found: Found) -> Recipe:
    """The recipe with the solver of the run's first start: `--solver auto` depends on the memory that is free."""
    history = found.state["history"]
    if not history and not found.state["step"]:
        return recipe
    solver = "lbfgs" if history and "l2" in history[0] else "sgd"
    return replace(recipe, training=replace(recipe.training, solver=solver))


def check_fit(found: Found, network: Network) -> None:
    """Raise `UserError` where a checkpoint's tensors are not those of the network; before anything is written."""
    state, frozen = network.model.state_dict(), network.frozen_keys()
    changing = {key: value for key, value in state.items() if key not in frozen}
    wanted = {"frozen": {key: state[key] for key in frozen}, "model": changing}
    wanted |= {"best": changing, "start": changing, "average": changing}
    for name, expected in wanted.items():
        held = _tensors(found.folder / f"{name}.safetensors", optional=name not in ("frozen", "model"))
        fit = held.keys() == expected.keys() and all(_fits(held[key], value) for key, value in expected.items())
        if not fit and (held or name in ("frozen", "model")):
            raise _other_network(found, f"{name}.safetensors")
    if len(found.saved["rates"]) != len(parameter_groups(network, weight_decay=0.0)):
        raise _other_network(found, "state.json")
    parameters = dict(network.model.named_parameters())
    for key, value in _tensors(found.folder / "optimizer.safetensors").items():
        parameter = parameters.get(key.rpartition("/")[0])
        if parameter is None or not (_fits(value, parameter) or value[0] in ((), (1,))):
            raise _other_network(found, "optimizer.safetensors")


def _tensors(path: Path, optional: bool = False) -> dict[str, tuple[tuple[int, ...], bool]]:
    """The shape of each tensor in a file, and whether it holds floats; none of an `optional` file that is missing."""
    if optional and not path.exists():
        return {}
    try:
        with safe_open(path, "pt") as file:
            held = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            return {key: (tuple(one.get_shape()), "F" in one.get_dtype()) for key, one in held.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}. Start anew with another --output.") from error


def _fits(held: tuple[tuple[int, ...], bool], wanted: Tensor) -> bool:
    return held == (tuple(wanted.shape), wanted.is_floating_point())


def _other_network(found: Found, name: str) -> UserError:
    return UserError(
        f"{name} of {found.folder} does not fit this network: the checkpoint was changed, or is of another version. "
        f"Start anew with another --output."
    )


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The settings that differ, as `--name before → now`. Raises `UserError` for those that may not change."""
    differing = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)} - NO_SETTING

    def listed(names: set[str]) -> list[str]:
        flag_of = {"mixed_precision": "precision"}
        flags = {name: flag_of.get(name, name).replace("_", "-") for name in sorted(names)}
        return [f"--{flag} {before.get(name)} → {now.get(name)}" for name, flag in flags.items()]

    may_change = MAY_CHANGE - ({"epochs"} if now.get("minutes") is not None else set())  # --minutes has chosen them
    if wrong := differing - may_change:
        if wrong & {"classes", "images"} and "exclude" in differing:
            raise UserError(f"--resume cannot change {', '.join(listed({'exclude'}))}: other images would be left.")
        if wrong & {"classes", "images"}:
            raise UserError(
                f"--data {now['data']} does not hold the images that this run was trained on: their names, number or "
                f"classes differ. Restore them, or start anew with another --output."
            )
        raise UserError(
            f"--resume cannot change {', '.join(listed(wrong))}. Give the run's own settings (they are all in its "
            f"config.json), or start anew with another --output."
        )
    return listed(differing)


def inexact(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What else differs between two configs and keeps the result from being the same to the byte."""
    pairs = [(name, before["versions"].get(name), now["versions"][name]) for name in EXACT_VERSIONS]
    pairs.append(("threads", before["threads"], now["threads"]))
    found = [f"{name} {old} → {new}" for name, old, new in pairs if old != new]
    if before["image_sizes"] != now["image_sizes"]:
        found.append("image files of other sizes under the same names")
    return found


def report(output: Path, found: Found | None, config: dict[str, Any], epochs: int) -> str:
    """Where a run of so many epochs resumes and what has changed since, for the terminal."""
    if found is None:
        return f"Nothing to resume: {output} has no checkpoint yet. From the beginning."
    epoch, history = found.state["epoch"], found.state["history"]
    where = f"epoch {epoch + 1}" if epoch < epochs else "all epochs"
    only_solved = bool(history) and "l2" in history[-1] and history[-1]["step"] == found.state["step"]
    where = "the head is solved" if only_solved else f"{where}, after {found.state['step']} steps"
    lines = [f"Resuming from {found.folder}: {where}."]
    lines += [f"Deleted {path.name}, which is damaged: {wrong}" for path, wrong in found.damaged.items()]
    if changed := changes(found.settings, config):
        lines.append(f"Changed since: {', '.join(changed)}")
    if differing := inexact(found.settings, config):
        lines.append(f"The result will not be the same to the byte, since these differ: {', '.join(differing)}")
    return "\n".join(lines)
