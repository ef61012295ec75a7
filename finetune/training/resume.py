"""Resuming a run: its newest checkpoint, and the settings that may differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from finetune.errors import UserError
from finetune.runtime import devices
from finetune.training import checkpoint
from finetune.training.checkpoint import Found

# Settings that may change when a run is resumed. Any other changes what is trained.
MAY_CHANGE = {
    *("epochs", "patience", "min_delta", "tracker", "project", "output", "checkpoint_every", "keep_checkpoints"),
    *("data", "data_root", "workers", "eval_batch_size", "accumulate", "num_processes", "device", "compile"),
    "gradient_checkpointing",
    *("cache_dir", "cache_gb", "cache_images", "log_every", "log_model"),
    "exclude",  # another file of the same content; the images themselves are compared,
}
NO_SETTING = {"versions", "threads", "image_sizes", "git_commit", "resume"}
EXACT_VERSIONS = ("torch", "torchvision", "accelerate", "numpy", "pillow")  # the last bits of a result depend on them


def find(output: Path, config: dict[str, Any], accelerator: Accelerator) -> Found | None:
    """The newest whole checkpoint of a run, the same on all processes; None where there is none. Collective.

    Raises `UserError` where all checkpoints are damaged, where a setting of `config` differs that may not, and where
    another machine does not see the folder. Also for a finished run without checkpoints.
    """

    def verified() -> Found | None:
        found = checkpoint.find(output / "checkpoints")
        changes(found.settings if found else json.loads((output / "config.json").read_text()), config)
        if found is None and (output / "summary.json").exists():
            raise UserError(
                f"--resume: {output} is a finished run without checkpoints, so there is nothing to go on with. Start "
                f"anew with another --output."
            )
        return found

    found = devices.from_main(accelerator, verified)  # read and verified once
    if found is not None and not found.folder.is_dir():
        raise UserError(f"{found.folder} is not visible on every machine: --output must be on shared storage.")
    return found


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The settings that differ, as `--name before → now`. Raises `UserError` for those that may not change."""
    differing = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)} - NO_SETTING

    def listed(names: set[str]) -> list[str]:
        return [f"--{name.replace('_', '-')} {before.get(name)} → {now.get(name)}" for name in sorted(names)]

    if wrong := differing - MAY_CHANGE:
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
    pairs = [(name, before["versions"][name], now["versions"][name]) for name in EXACT_VERSIONS]
    pairs.append(("threads", before["threads"], now["threads"]))
    found = [f"{name} {old} → {new}" for name, old, new in pairs if old != new]
    if before["image_sizes"] != now["image_sizes"]:
        found.append("image files of other sizes under the same names")
    return found


def report(output: Path, found: Found | None, config: dict[str, Any]) -> str:
    """Where a run resumes and what has changed since, for the terminal."""
    if found is None:
        return f"Nothing to resume: {output} has no checkpoint yet. From the beginning."
    epoch, step = found.state["epoch"], found.state["step"]
    where = f"epoch {epoch + 1}" if epoch < config["epochs"] else "all epochs"
    lines = [f"Resuming from {found.folder}: {where}, {step} steps done."]
    lines += [f"Deleted {path.name}, which is damaged: {wrong}" for path, wrong in found.damaged.items()]
    if changed := changes(found.settings, config):
        lines.append(f"Changed since: {', '.join(changed)}")
    if differing := inexact(found.settings, config):
        lines.append(f"The result will not be the same to the byte, since these differ: {', '.join(differing)}")
    return "\n".join(lines)
