"""Build a network: torchvision's architecture, its weights, a new head."""

from __future__ import annotations

import json
import pickle
import re
import urllib.error
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune.archs import Family, Preprocess, find, preprocess
from finetune.errors import UserError

STARTER_FOLDER = Path(__file__).parent / "starter" / "backbone"


def build(name: str, classes: int, weights: str, image_size: int | None = None) -> tuple[nn.Module, Preprocess]:
    """A torchvision model with a new linear head, and the evaluation transform that belongs to its weights.

    Args:
        name: one of torchvision's classification models.
        classes: outputs of the new head. Its weights are zero, so that the first loss is ln(classes) and the first
            update leaves pretrained features alone.
        weights: `default`, `starter`, `none`, a weights file, or a model folder.
        image_size: side of the input in pixels, or None for that of the weights.

    Everything but the heads has the weights' values under torchvision's own key names; with `none` it is torchvision's
    random initialisation, drawn from torch's global generator. Raises `UserError` for weights that cannot be had, are
    no weights, or do not fit.
    """
    family = find(name)
    transform, state = preprocess(name), None
    if weights != "none":
        state, own_transform = _read(name, weights)
        transform = own_transform or transform
    if image_size is not None:
        transform = transform.at_size(image_size)
    options = dict(family.options)
    if family.size_argument:
        side = transform.crop
        options[family.size_argument] = side if family.size_argument == "image_size" else (side, side)
    if state is not None:
        options |= dict(family.pretrained_options)
    elif family.aux:
        options["init_weights"] = True
    try:
        # Parameters that the file replaces are never drawn: large nets start in a fraction of the time.
        with nullcontext() if state is None else init_empty_weights(include_buffers=False):
            model = torchvision.models.get_model(name, weights=None, **options)
    except (ValueError, AssertionError) as error:
        raise UserError(f"{name} cannot be built for images of {transform.crop} pixels: {error}") from error
    if state is not None:
        _load(model, family, state, f"--weights {weights}", name)
    for path in (family.head, *family.aux):
        replace_head(model, path, classes)
    if family.after_head:
        model.set_submodule(family.after_head, nn.Identity())
    return model, transform


def replace_head(model: nn.Module, path: str, classes: int) -> None:
    """Put a new layer with `classes` outputs at `path`, which holds a Linear or, in SqueezeNet, a 1 × 1 convolution."""
    old = model.get_submodule(path)
    if isinstance(old, nn.Conv2d):
        new: nn.Module = nn.Conv2d(old.in_channels, classes, kernel_size=1)
    else:
        new = nn.Linear(old.in_features, classes)
    nn.init.zeros_(new.weight)
    nn.init.zeros_(new.bias)
    model.set_submodule(path, new)


def _read(name: str, weights: str) -> tuple[dict[str, Tensor], Preprocess | None]:
    """The state dict that `--weights` names and, for a model folder, the transform it was trained with."""
    if weights == "default":
        return _download(name), None
    path = STARTER_FOLDER if weights == "starter" else Path(weights).expanduser()
    if path.is_dir():
        try:
            card = json.loads((path / "model.json").read_text())
            transform = Preprocess(**card["preprocess"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"--weights {weights}: not a model folder, its model.json cannot be read ({error})."
            ) from error
        if card.get("model") != name:
            raise UserError(
                f"--weights {weights} are a {card.get('model')}'s, not a {name}'s: --model {card.get('model')}"
            )
        transform = replace(transform, mean=tuple(transform.mean), std=tuple(transform.std))
        return _read_file(path / "model.safetensors", weights), transform
    return _read_file(path, weights), None


def _download(name: str) -> dict[str, Tensor]:
    chosen = torchvision.models.get_model_weights(name).DEFAULT
    try:
        return dict(chosen.get_state_dict(progress=False, check_hash=True))
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"the weights of {name} cannot be downloaded ({error}). Fetch {chosen.url} elsewhere and give the file: "
            f"--weights PATH. Or train from random ones: --weights none"
        ) from error


def _read_file(path: Path, given: str) -> dict[str, Tensor]:
    """Tensors by name from .safetensors, or from .pth with torch's restricted unpickler: no code in it is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"--weights {given} is not a weights file: {first}") from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"--weights {given} holds no state dict: it must map parameter names to tensors.")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _load(model: nn.Module, family: Family, state: dict[str, Tensor], given: str, name: str) -> None:
    """Fill everything but the heads; whatever is missing, left over or of another shape is a `UserError`."""
    if family.renamed_keys:
        state = {re.sub(*family.renamed_keys, key): value for key, value in state.items()}
    heads = tuple(f"{path}." for path in (family.head, *family.aux))
    wanted = {key: value.shape for key, value in model.state_dict().items() if not key.startswith(heads)}
    state = {key: value for key, value in state.items() if not key.startswith(heads)}
    # BatchNorm's counters are left out of account: files from before torch 0.4.1 lack them, and nothing uses them.
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted and not key.endswith("num_batches_tracked")]
    misfits = [
        f"{key} {tuple(state[key].shape)} for {tuple(wanted[key])}"
        for key in wanted
        if key in state and state[key].shape != wanted[key]
    ]
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misfits))
        if keys
    ]
    if problems:
        raise UserError(f"{given} does not fit {name}: {'; '.join(problems)}. Is it another model's? See --model.")
    floats = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    model.load_state_dict(floats, strict=False, assign=True)
