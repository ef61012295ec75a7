"""Weights: read from torchvision, a file or a model folder, and loaded into a model."""

from __future__ import annotations

import pickle
import re
import urllib.error
import warnings
from collections import OrderedDict
from pathlib import Path

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune.errors import UserError
from finetune.models import metadata
from finetune.models.architectures import Family, Preprocess
from finetune.runtime import files

# What the readers raise for a file without weights.
READ_ERRORS = (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, LookupError,
               AttributeError)  # fmt: skip
STARTER_FOLDER = Path(__file__).parent.parent / "starter" / "backbone"


def read(model: str, weights: str) -> tuple[dict[str, Tensor], Preprocess | None]:
    """The state dict that `--weights` names and, from a model folder, its transform.

    Raises `UserError` for weights that cannot be downloaded or read, and for those of another model.
    """
    if weights == "default":
        return _download(model), None
    path = STARTER_FOLDER if weights == "starter" else files.expanded(weights)
    if not path.is_dir():
        return _read_file(path, weights), None
    folder = path / "model" if (path / "model" / metadata.NAME).is_file() else path  # a run's folder
    known = metadata.read(folder)
    if known.net.model != model:
        raise UserError(f"--weights {weights} is a {known.net.model}, not a {model}: use --model {known.net.model}.")
    return _read_file(folder / "model.safetensors", weights), known.preprocess


def _download(name: str) -> dict[str, Tensor]:
    chosen = torchvision.models.get_model_weights(name).DEFAULT
    try:
        return dict(chosen.get_state_dict(progress=False, check_hash=True))
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"the weights of {name} cannot be downloaded ({error}). Download {chosen.url} elsewhere and use "
            f"--weights PATH, or train from random weights: --weights none."
        ) from error


def _read_file(path: Path, given: str) -> dict[str, Tensor]:
    """Tensors by name, from .safetensors or from .pth with torch's restricted unpickler, which runs no code."""
    try:
        files.check_regular(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except READ_ERRORS as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "weights_only" in str(error) or "Weights only" in str(error):
            first = "it holds other objects than tensors, perhaps a whole model. Save its state_dict() instead"
        raise UserError(f"--weights {given} is not a weights file: {first}") from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())
    ):
        raise UserError(f"--weights {given} holds no state dict: it must map parameter names to tensors.")
    return {key.removeprefix("module."): value for key, value in state.items()}


def load(
    model: nn.Module, family: Family, state: dict[str, Tensor], given: str, name: str, heads: bool = False
) -> None:
    """Load a state dict into all layers but the heads, or with `heads` into all.

    `given` names the state dict in messages, `name` the model.
    Raises `UserError` for tensors that are missing, unexpected or of another shape.
    """
    if family.renamed_keys:
        state = {re.sub(*family.renamed_keys, key): value for key, value in state.items()}
    left_out = () if heads else tuple(f"{path}." for path in (family.head, *family.aux))
    wanted = {key: value.shape for key, value in model.state_dict().items() if not key.startswith(left_out)}
    state = {key: value for key, value in state.items() if not key.startswith(left_out)}
    # BatchNorm's counters may be missing, as in files from before torch 0.4.1: nothing uses them.
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
        raise UserError(f"{given} does not fit {name}: {'; '.join(problems)}. Is it of another --model?")
    check_values(state, {key: value for key, value in model.state_dict().items() if key in wanted}, given)
    assign(model, state, strict=False)


def check_values(state: dict[str, Tensor], wanted: dict[str, Tensor], given: str) -> None:
    """Raise `UserError` for tensors that a model cannot compute with, although their shapes fit `wanted`.

    `given` names the state dict.
    """
    for key, value in state.items():
        plain = value.layout == torch.strided and not value.is_meta and not value.is_quantized
        if not plain:
            raise UserError(f"{given}: {key} is sparse, quantised or without values. Save plain tensors instead.")
        floats = key not in wanted or wanted[key].is_floating_point()
        if value.is_complex() or (key in wanted and value.is_floating_point() != floats):
            kind = "floats" if floats else "integers"
            raise UserError(f"{given}: {key} is {str(value.dtype).removeprefix('torch.')}; it must be {kind}.")
        if value.is_floating_point() and not value.float().isfinite().all():
            raise UserError(f"{given}: {key} has values that are not finite. Take other weights.")


def assign(model: nn.Module, state: dict[str, Tensor], strict: bool = True) -> None:
    """Load a state dict into a model, which may be on the meta device, as float32 copies.

    Copies, because tensors of a safetensors file are memory-mapped: they would change when the file is overwritten, and
    are not aligned, which changes the rounding of CPU kernels.
    """
    copies = {
        key: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for key, value in state.items()
    }
    model.load_state_dict(with_versions(model, copies), strict=strict, assign=True)


def with_versions(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the versions of the model's modules."""
    versioned = OrderedDict(state)
    # torch keeps the versions in this attribute, which a plain dict lacks. Without it MNASNet takes a state dict for
    # one of its first version and refuses to load it.
    versioned._metadata = model.state_dict()._metadata
    return versioned
