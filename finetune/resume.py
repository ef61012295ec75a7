"""Going on from a checkpoint: which one, and whether the settings are still those of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from finetune import checkpoint, hardware
from finetune.errors import UserError

# What may be another after a restart. All else would make it another run.
MAY_CHANGE = (
    *("epochs", "patience", "min_delta", "tracker", "project", "output", "checkpoint_every", "keep_checkpoints"),
    *("data", "data_root", "workers", "eval_batch_size", "accumulate", "num_processes", "device", "compile"),
    *("cache_dir", "cache_gb", "cache_images", "log_every", "log_model"),
)
# What is no setting. Of it, what the last bits of a result depend on is told.
UNTOLD = ("versions", "threads", "image_sizes", "git_commit", "resume")
EXACT = ("torch", "torchvision", "accelerate", "numpy", "pillow")


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is said of settings that differ, as `--name before → now`; a `UserError` for those that may not."""
    differing = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)} - set(UNTOLD)

    def told(names: set[str]) -> list[str]:
        return [f"--{name.replace('_', '-')} {before.get(name)} → {now.get(name)}" for name in sorted(names)]

    if wrong := differing - set(MAY_CHANGE):
        if wrong & {"classes", "images"}:
            raise UserError(
                f"--data {now['data']} does not hold the images that this run was trained on: their names, number or "
                f"classes are others. Bring them back, or start anew with another --output."
            )
        raise UserError(
            f"--resume cannot change {', '.join(told(wrong))}. Give the run's own settings (its config.json has them "
            f"all), or start anew with another --output."
        )
    return told(differing)


def inexact(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs besides the settings so that the result cannot be the same to the byte; an older run may not say."""
    versions = before.get("versions", {})
    pairs = [(name, versions.get(name), now["versions"][name]) for name in EXACT]
    pairs.append(("threads", before.get("threads"), now["threads"]))
    found = [f"{name} {old} → {new}" for name, old, new in pairs if old is not None and old != new]
    if before.get("image_sizes", now["image_sizes"]) != now["image_sizes"]:
        found.append("image files of other sizes under the same names")
    return found


def find(output: Path, settings: dict[str, Any], accelerator: Accelerator) -> checkpoint.Found | None:
    """The newest whole checkpoint of a run with these settings, the same on all processes; None where it has none.

    Raises `UserError` where all are damaged, where a setting differs that may not, or where a process of another
    machine does not see the folder.
    """

    def look() -> checkpoint.Found | None:
        whole = checkpoint.find(output / "checkpoints")
        changes(whole.settings if whole else json.loads((output / "config.json").read_text()), settings)
        return whole

    found = hardware.from_main(accelerator, look)  # read and verified once
    if found is None:
        return None
    if not found.folder.is_dir():
        raise UserError(f"{found.folder} is not there on each machine: --output must be on storage that all share.")
    return found


def told(output: Path, found: checkpoint.Found | None, settings: dict[str, Any]) -> str:
    """What a person is told about how a run goes on."""
    if found is None:
        return f"Nothing to resume: {output} has no checkpoint yet. From the beginning."
    at = found.progress
    where = f"epoch {at.epoch + 1}" if at.epoch < settings["epochs"] else "all epochs"
    lines = [f"Going on from {found.folder}: {where}, {at.done} updates done."]
    lines += [f"Skipped and removed {path.name}, which is damaged: {wrong}" for path, wrong in found.damaged.items()]
    if differing := changes(found.settings, settings):
        lines.append(f"Changed since: {', '.join(differing)}")
    if differing := inexact(found.settings, settings):
        lines.append(f"Not to the byte what it would have been, since these differ: {', '.join(differing)}")
    return "\n".join(lines)
