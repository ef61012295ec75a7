"""Build a network: torchvision's architecture, its weights, a new head."""

from __future__ import annotations

import json
import pickle
import re
import urllib.error
import warnings
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune.archs import Family, Preprocess, find, preprocess, stages
from finetune.errors import UserError
from finetune.heads import replace_head
from finetune.recipe import Net

# What readers raise for a file that is no weights file.
NO_WEIGHTS = (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, LookupError)
STARTER_FOLDER = Path(__file__).parent / "starter" / "backbone"


def build(
    net: Net, classes: int, empty: bool = False, restored: Preprocess | None = None
) -> tuple[nn.Module, Preprocess, list[list[str]]]:
    """A torchvision model with a new head, its evaluation transform, and the paths at each of its depths.

    Everything but the heads has the weights' values under torchvision's own key names; with `--weights none` it is
    torchvision's random initialisation, drawn from torch's global generator, or, if `empty`, has shapes but no values:
    enough for a plan, and no time; `--weights default` are not downloaded for that. The transform is the one that
    belongs to the weights. With `restored`, a transform that this function once gave, the weights are not read: a
    checkpoint will replace them all.

    Raises `UserError` for weights that cannot be had, are no weights, or do not fit, and for a head or an input that
    the architecture does not take.
    """
    family = find(net.model)
    transform, state = restored or preprocess(net.model), None
    if net.weights != "none" and not restored and not (empty and net.weights == "default"):
        state, own_transform = _read(net.model, net.weights)
        transform = own_transform or transform
    if net.image_size is not None and not restored:
        transform = transform.at_size(net.image_size)
    model = _plain(net.model, family, transform.crop, net.weights != "none", empty or state is not None)
    if state is not None:
        _load(model, family, state, f"--weights {net.weights}", net.model)
    if net.in_channels != 3:
        transform = convert_first_layer(model, family, transform, net.in_channels, net.first_layer)
    head = replace_head(
        model, family, classes, net.head, net.hidden, net.dropout, net.head_batchnorm, net.pool_size, transform.crop
    )
    return model, restored or transform, stages(model, family, head)


def skeleton(net: Net, classes: int, preprocess: Preprocess) -> nn.Module:
    """The architecture that `build` makes, its parameters on the meta device: shapes without values, and no memory."""
    family = find(net.model)
    model = _plain(net.model, family, preprocess.crop, net.weights != "none", empty=True)
    with torch.device("meta"):
        if net.in_channels != 3:
            convert_first_layer(model, family, preprocess, net.in_channels, net.first_layer)
        replace_head(
            model, family, classes, net.head, net.hidden, net.dropout, net.head_batchnorm, net.pool_size,
            preprocess.crop,
        )  # fmt: skip
    return model


def _plain(name: str, family: Family, side: int, pretrained: bool, empty: bool) -> nn.Module:
    """torchvision's model for square images of this side; if `empty`, without values."""
    options = dict(family.options)
    if family.size_argument:
        options[family.size_argument] = side if family.size_argument == "image_size" else (side, side)
    if pretrained:
        options |= dict(family.pretrained_options)
    elif family.aux:
        options["init_weights"] = True
    try:
        # Parameters that a file replaces are never drawn: large nets start in a fraction of the time.
        with init_empty_weights(include_buffers=False) if empty else nullcontext():
            return torchvision.models.get_model(name, weights=None, **options)
    except (ValueError, AssertionError) as error:
        raise UserError(f"{name} cannot be built for images of {side} pixels: {error}") from error


# What the ITU's BT.601 weighs red, green and blue with; Pillow's conversion to grey is the same.
LUMA = (0.299, 0.587, 0.114)


def convert_first_layer(model: nn.Module, family: Family, transform: Preprocess, channels: int, how: str) -> Preprocess:
    """Let a net for three channels take another number, keeping its weights, and give the transform that fits.

    One channel by `sum`: the kernels of the three channels are added up, so that the net says of a grey image what it
    said of its copy with red = green = blue. By `luma`: they are added with the weights of BT.601, a third as strong on
    average. Several channels: the three are cycled through and scaled by 3 / channels, as timm does
    (`adapt_input_conv`).
    """
    old = model.get_submodule(family.first)
    rgb = old.weight.detach()  # (out, 3, h, w)
    if channels == 1:
        shares = torch.tensor(LUMA if how == "luma" else (1.0, 1.0, 1.0), dtype=rgb.dtype, device=rgb.device)
        weight = (rgb * shares.view(1, 3, 1, 1)).sum(1, keepdim=True)  # (out, 1, h, w)
    else:
        weight = rgb[:, [k % 3 for k in range(channels)]] * (3 / channels)  # (out, channels, h, w)
    old.in_channels = channels
    old.weight = nn.Parameter(weight)
    mean, std = transform.mean, transform.std
    if getattr(model, "transform_input", False):
        # This net turns ImageNet's normalisation into another inside, channel by channel: do that one outside instead.
        model.transform_input, mean, std = False, (0.5,) * 3, (0.5,) * 3
    if channels == 1:
        return replace(transform, mean=(sum(mean) / 3,), std=(sum(std) / 3,))
    cycled = range(channels)
    return replace(transform, mean=tuple(mean[k % 3] for k in cycled), std=tuple(std[k % 3] for k in cycled))


def _read(name: str, weights: str) -> tuple[dict[str, Tensor], Preprocess | None]:
    """The state dict that `--weights` names and, for a model folder, the transform it was trained with."""
    if weights == "default":
        return _download(name), None
    path = STARTER_FOLDER if weights == "starter" else Path(weights).expanduser()
    if path.is_dir():
        path = path / "model" if (path / "model" / "model.json").is_file() else path  # a run's folder
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
    except (
        SafetensorError,
        pickle.UnpicklingError,
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
    ) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "weights_only" in str(error) or "Weights only" in str(error):
            first = "it holds more than tensors, perhaps a whole model. Save its state_dict() and give that"
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
    assign(model, state, strict=False)


def assign(model: nn.Module, state: dict[str, Tensor], strict: bool = True) -> None:
    """Give a model the values of a state dict that was read from a file, in float32, also where it has none yet.

    They are copies. A tensor of a safetensors file is the mapped file itself: it would change whenever that file is
    overwritten, and it lies at any address, by which the CPU's libraries round (a checkpoint's copy, with other bits,
    would not go on as the run did).
    """
    copies = {
        key: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for key, value in state.items()
    }
    model.load_state_dict(with_metadata(model, copies), strict=strict, assign=True)


def with_metadata(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the versions of the model's modules, which MNASNet will not be loaded without."""
    given = OrderedDict(state)
    given._metadata = model.state_dict()._metadata
    return given
