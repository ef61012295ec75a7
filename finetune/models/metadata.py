"""model.json: a model's metadata, which is all that its weights need to be used. The reader checks every value."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from finetune.config.bounds import wrong_values
from finetune.config.settings import Net
from finetune.errors import UserError
from finetune.models import architectures
from finetune.models.architectures import FITS, Preprocess

NAME = "model.json"
FORMAT = 2  # 1: without `preprocess.fit`
LARGEST_FILE = 16 * 2**20  # bytes; a million classes fit
LARGEST_SIDE = 8192  # pixels of the input
LARGEST_POOL = 64  # cells per side


@dataclass(frozen=True)
class Metadata:
    """The content of model.json."""

    net: Net
    """The architecture, its head and its input."""
    classes: list[str]
    """In the order of the model's outputs."""
    preprocess: Preprocess
    """The evaluation transform."""
    score: dict[str, float]
    """`epoch`, `val_accuracy` and `val_loss` of these weights; `temperature`, by which the last layer was divided."""


def of_run(net: Net, classes: list[str], preprocess: Preprocess, record: dict[str, Any]) -> Metadata:
    """The metadata of a run's weights; `record` is their epoch's record of metrics.jsonl."""
    score = {name: record[name] for name in ("epoch", "val_accuracy", "val_loss", "temperature") if name in record}
    return Metadata(net, classes, preprocess, score)


def write(folder: Path, known: Metadata) -> None:
    """Write model.json into a folder."""
    content = {"format": FORMAT, **asdict(known.net), "classes": known.classes}
    content |= {"preprocess": asdict(known.preprocess), "score": known.score}
    (folder / NAME).write_text(json.dumps(content, indent=2) + "\n")


def read(folder: Path) -> Metadata:
    """Read a folder's model.json. Raises `UserError` for a missing or wrong value."""
    path = inside(folder, NAME)
    _check(path.stat().st_size <= LARGEST_FILE, folder, "it is larger than any model.json")
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / NAME} is not JSON: {error}") from error
    _check(isinstance(content, dict) and isinstance(content.get("format"), int), folder, "it has no format number")
    if content["format"] > FORMAT:
        raise UserError(
            f"{folder / NAME} was written by a newer version (format {content['format']}; this one knows {FORMAT}). "
            f"Update this project: git pull"
        )
    classes, transform, score = content.get("classes"), content.get("preprocess"), content.get("score", {})
    names = isinstance(classes, list) and len(classes) >= 2 and all(isinstance(name, str) for name in classes)
    _check(names and len(set(classes)) == len(classes), folder, "classes must be different names, two or more")
    _check(isinstance(score, dict), folder, "score must be an object")
    try:
        own = {field.name: content[field.name] for field in fields(Net)}
        net = Net(**own | {"hidden": tuple(own["hidden"])})
        preprocess = Preprocess(**transform)
        preprocess = replace(preprocess, mean=tuple(preprocess.mean), std=tuple(preprocess.std))
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / NAME} is damaged: {error} is missing or of another type.") from error
    _check_net(folder, net)
    _check_transform(folder, preprocess, net.in_channels)
    return Metadata(net, classes, preprocess, score)


def inside(folder: Path, name: str) -> Path:
    """The path of a file in a folder. A link out of the folder is refused, except into the Hugging Face cache."""
    path, top = (folder / name).resolve(), folder.resolve()
    blobs = top.parent.parent / "blobs" if top.parent.name == "snapshots" else top
    if not (path.is_relative_to(top) or path.is_relative_to(blobs)):
        raise UserError(f"{folder / name} is a link out of its folder, which is not followed. Copy the file there.")
    if not path.is_file():
        raise UserError(f"{folder} holds no {name}: copy the whole folder again.")
    return path


def _check_net(folder: Path, net: Net) -> None:
    for name, value, expected in wrong_values(net):
        _check(False, folder, f"{name} {value!r} must be {expected}")
    _check(net.model in architectures.BY_NAME, folder, f"model {net.model!r} is none of torchvision's")
    _check((net.pool_size or 1) <= LARGEST_POOL, folder, f"pool_size {net.pool_size} is larger than any feature map")


def _check_transform(folder: Path, preprocess: Preprocess, channels: int) -> None:
    sides = (preprocess.crop, preprocess.resize)
    whole = all(isinstance(side, int) and 1 <= side <= LARGEST_SIDE for side in sides)
    _check(whole, folder, f"crop and resize {sides} must be whole numbers from 1 to {LARGEST_SIDE}")
    _check(preprocess.interpolation in ("nearest", "bilinear", "bicubic"), folder, "interpolation is unknown")
    _check(isinstance(preprocess.fit, str) and preprocess.fit in FITS, folder, f"fit must be one of {', '.join(FITS)}")
    for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
        numbers = len(values) == channels and all(isinstance(v, float | int) and math.isfinite(v) for v in values)
        _check(numbers, folder, f"{name} must be {channels} numbers")
    _check(min(preprocess.std) > 0, folder, "std must be above 0")


def _check(ok: bool, folder: Path, problem: str) -> None:
    if not ok:
        raise UserError(f"{folder / NAME} is damaged: {problem}.")
