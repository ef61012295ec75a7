"""model.json: a model's metadata, which is all that its weights need to be used. The reader checks every value."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from finetune.config.schema import Number, convert, fits, problem, wrong_values
from finetune.config.settings import Net, PositiveInt
from finetune.errors import UserError, shortened
from finetune.models import architectures
from finetune.models.architectures import Preprocess
from finetune.runtime import files

NAME = "model.json"
FORMAT = 2  # 1: without `preprocess.fit`
LARGEST_FILE = 16 * 2**20  # bytes; a million classes fit


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
    content = files.read_json(inside(folder, NAME), LARGEST_FILE)
    _check(fits(content.get("format"), PositiveInt), folder, "it has no format number")
    if content["format"] > FORMAT:
        raise UserError(
            f"{folder / NAME} was written by a newer version (format {content['format']}; this one knows {FORMAT}). "
            f"Update this project: git pull"
        )
    if wrong := problem(content, {"classes": list[str], "preprocess": dict}, {"score": dict[str, Number]}):
        _check(False, folder, wrong)
    classes, score = content["classes"], content.get("score", {})
    _check(
        len(classes) >= 2 and len(set(classes)) == len(classes), folder, "classes must be different names, two or more"
    )
    try:
        net = Net(**{field.name: convert(Net, field.name, content[field.name]) for field in fields(Net)})
    except KeyError as error:
        raise UserError(f"{folder / NAME} is damaged: {error} is missing.") from error
    for name, value, wanted in wrong_values(net):
        _check(False, folder, f"{name} {shortened(repr(value))} must be {wanted}")
    _check(net.model in architectures.BY_NAME, folder, f"model {net.model!r} is none of torchvision's")
    try:
        preprocess = Preprocess.from_json(content["preprocess"])
    except ValueError as error:
        raise UserError(f"{folder / NAME} is damaged: preprocess: {error}.") from error
    _check(len(preprocess.mean) == net.in_channels, folder, f"mean must be {net.in_channels} numbers")
    return Metadata(net, classes, preprocess, score)


def inside(folder: Path, name: str) -> Path:
    """The path of a file in a folder. A link out of the folder is refused, except into the Hugging Face cache."""
    try:
        path, top = (folder / name).resolve(), folder.resolve()
    except RuntimeError as error:  # before Python 3.13
        raise UserError(f"{folder / name} is a link to itself. Copy the file there.") from error
    blobs = top.parent.parent / "blobs" if top.parent.name == "snapshots" else top
    if not (path.is_relative_to(top) or path.is_relative_to(blobs)):
        raise UserError(f"{folder / name} is a link out of its folder, which is not followed. Copy the file there.")
    if not path.is_file():
        raise UserError(f"{folder} holds no {name}: copy the whole folder again.")
    return path


def _check(ok: bool, folder: Path, what: str) -> None:
    if not ok:
        raise UserError(f"{folder / NAME} is damaged: {what}.")
