"""The model folder: weights and all that is needed to use them, in two files, written whole and opened with care."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from finetune import archs, durable, surgery
from finetune.archs import Preprocess
from finetune.errors import UserError
from finetune.recipe import Net

FORMAT = 1
LARGEST_CARD = 16 * 2**20  # bytes of model.json; a million classes fit
LARGEST_SIDE = 8192  # pixels of the input
WEIGHTS, CARD = "model.safetensors", "model.json"


@dataclass(frozen=True)
class Model:
    """A model folder, opened."""

    model: nn.Module
    """In evaluation mode, float32, on the CPU."""
    net: Net
    classes: list[str]
    """In the order of the outputs."""
    preprocess: Preprocess
    score: dict[str, float]
    """`epoch`, `val_accuracy` and `val_loss` of these weights."""
    folder: Path


def save(
    folder: Path, weights: dict[str, Tensor], net: Net, classes: list[str], preprocess: Preprocess, line: dict[str, Any]
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
    durable.save_tensors(state, fresh / WEIGHTS, metadata={"format": "pt"})
    score = {name: line[name] for name in ("epoch", "val_accuracy", "val_loss")}
    card = {"format": FORMAT, **asdict(net), "classes": classes, "preprocess": asdict(preprocess), "score": score}
    (fresh / CARD).write_text(json.dumps(card, indent=2) + "\n")
    if folder.exists():
        folder.rename(stale)
    fresh.rename(folder)
    shutil.rmtree(stale, ignore_errors=True)


def find(run: Path | str) -> Path:
    """The model folder of a run's folder, or the folder itself; a `UserError` where there is neither."""
    run = Path(run).expanduser()
    for folder in (run / "model", run):
        if (folder / CARD).is_file():
            return folder
    if (run / "config.json").is_file():
        raise UserError(f"{run} holds no model: the run has not finished an epoch. Train on, or name another run.")
    what = "holds no model/model.json" if run.is_dir() else "is a file" if run.exists() else "does not exist"
    raise UserError(f"{run} is no run: it {what}. Give a run's folder, such as runs/finetune-20250101-120000.")


def load(run: Path | str) -> Model:
    """Open a run's folder or a model folder, even a stranger's: no code in it is run and nothing outside it is read.

    The shapes of the weights must be those of the architecture that model.json describes, which is compared before
    memory is taken for either. Raises `UserError` for a folder that is no model, is damaged, or was made by a newer
    version.
    """
    folder = find(run)
    net, classes, preprocess, score = read_card(folder)
    path = _inside(folder, WEIGHTS)
    try:
        with safe_open(path, "pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            sides = {side for shape in shapes.values() for side in shape}
            for meaning, size in (("classes", len(classes)), ("channels", net.in_channels)):
                _check(size in sides, folder, f"{size} {meaning} fit no tensor of {WEIGHTS}")
            if net.head != "linear":
                _check(sides.issuperset(net.hidden), folder, f"hidden {net.hidden} fits no tensor of {WEIGHTS}")
            model = _skeleton(folder, net, classes, preprocess)
            wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
            odd = sorted(key for key in wanted.keys() | shapes.keys() if wanted.get(key) != shapes.get(key))
            _check(not odd, folder, f"{len(odd)} tensors of {WEIGHTS} do not fit {net.model} ({', '.join(odd[:3])})")
            state = {key: file.get_tensor(key) for key in shapes}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} is no whole safetensors file: {error}. Copy the folder again.") from error
    surgery.assign(model, state)
    return Model(model.eval().requires_grad_(False), net, classes, preprocess, score, folder)


def read_card(folder: Path) -> tuple[Net, list[str], Preprocess, dict[str, float]]:
    """What model.json says, every value checked: the network, its classes, the transform, the score."""
    path = _inside(folder, CARD)
    _check(path.stat().st_size <= LARGEST_CARD, folder, "it is larger than any model.json")
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / CARD} is not JSON: {error}") from error
    _check(isinstance(card, dict) and isinstance(card.get("format"), int), folder, "it has no format number")
    if card["format"] > FORMAT:
        raise UserError(
            f"{folder / CARD} was made by a newer version (format {card['format']}; this one knows {FORMAT}). "
            f"Update this project: git pull"
        )
    classes, transform, score = card.get("classes"), card.get("preprocess"), card.get("score", {})
    names = isinstance(classes, list) and len(classes) >= 2 and all(isinstance(name, str) for name in classes)
    _check(names and len(set(classes)) == len(classes), folder, "classes must be different names, two or more")
    _check(isinstance(score, dict), folder, "score must be an object")
    try:
        own = {field.name: card[field.name] for field in fields(Net)}
        net = Net(**own | {"hidden": tuple(own["hidden"])})
        given = Preprocess(**transform)
        preprocess = Preprocess(given.resize, given.crop, given.interpolation, tuple(given.mean), tuple(given.std))
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / CARD} is damaged: {error} is missing or of another kind.") from error
    _check_net(folder, net)
    _check_transform(folder, preprocess, net.in_channels)
    return net, classes, preprocess, score


def _check_net(folder: Path, net: Net) -> None:
    _check(net.model in archs.BY_NAME, folder, f"model {net.model!r} is none of torchvision's")
    _check(net.head in ("linear", "mlp", "concat_pool"), folder, f"head {net.head!r} is none of this version's")
    _check(net.first_layer in ("sum", "luma"), folder, f"first_layer {net.first_layer!r} is unknown")
    _check(all(_whole(width) for width in (*net.hidden, net.in_channels)), folder, "widths must be whole numbers")
    _check(isinstance(net.dropout, float | int) and 0 <= net.dropout < 1, folder, "dropout must be a share")
    _check(isinstance(net.head_batchnorm, bool), folder, "head_batchnorm must be true or false")
    _check(net.pool_size is None or (_whole(net.pool_size) and net.pool_size <= 64), folder, "pool_size is no size")


def _check_transform(folder: Path, preprocess: Preprocess, channels: int) -> None:
    sides = (preprocess.crop, preprocess.resize)
    _check(all(_whole(side) and side <= LARGEST_SIDE for side in sides), folder, f"sides {sides} are no image's")
    _check(preprocess.interpolation in ("nearest", "bilinear", "bicubic"), folder, "interpolation is unknown")
    for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
        numbers = len(values) == channels and all(isinstance(value, float | int) for value in values)
        _check(numbers and (name == "mean" or all(values)), folder, f"{name} must be {channels} numbers")


def _skeleton(folder: Path, net: Net, classes: list[str], preprocess: Preprocess) -> nn.Module:
    try:
        return surgery.skeleton(net, len(classes), preprocess)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"{folder / CARD} describes no network that can be built: {error}") from error


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder; a link out of it is refused, but for the Hugging Face cache's own to its blobs."""
    path, top = (folder / name).resolve(), folder.resolve()
    blobs = top.parent.parent / "blobs" if top.parent.name == "snapshots" else top
    if not (path.is_relative_to(top) or path.is_relative_to(blobs)):
        raise UserError(f"{folder / name} is a link out of its folder: it is not followed. Copy the file there.")
    if not path.is_file():
        raise UserError(f"{folder} holds no {name}: copy the whole folder again.")
    return path


def _check(ok: bool, folder: Path, what: str) -> None:
    if not ok:
        raise UserError(f"{folder / CARD} is damaged: {what}.")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
