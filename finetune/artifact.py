"""The model folder: weights and all that is needed to use them, in two files."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.archs import Preprocess

FORMAT = 1


def save(
    folder: Path,
    weights: dict[str, Tensor],
    net: dict[str, Any],
    classes: list[str],
    preprocess: Preprocess,
    line: dict[str, Any],
) -> None:
    """Write the folder anew; an earlier one is replaced only when the new one is whole.

    `model.safetensors` holds `weights`, the plain torchvision state dict, float32, under torchvision's key names.
    `model.json` holds what `net` says of the architecture (its name under `model`, the head, the channels), class names
    in the order of the outputs, evaluation transform and, from the epoch's line of metrics.jsonl, the score.
    """
    fresh, stale = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (fresh, stale):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    state = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    save_file(state, fresh / "model.safetensors", metadata={"format": "pt"})
    score = {name: line[name] for name in ("epoch", "val_accuracy", "val_loss")}
    card = {"format": FORMAT, **net, "classes": classes, "preprocess": asdict(preprocess), "score": score}
    (fresh / "model.json").write_text(json.dumps(card, indent=2) + "\n")
    if folder.exists():
        folder.rename(stale)
    fresh.rename(folder)
    shutil.rmtree(stale, ignore_errors=True)


def load_weights(folder: Path, model: nn.Module) -> None:
    """Put the saved weights back into the model that they were saved from."""
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
