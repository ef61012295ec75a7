"""A state dict for torchvision's own model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from finetune.config.settings import Net
from finetune.errors import UserError
from finetune.inference.export_forms import Form
from finetune.models import architectures, pretrained
from finetune.models.architectures import Preprocess
from finetune.models.model_folder import Model
from finetune.models.weights import with_versions


def write(opened: Model, form: Form, path: Path, about: dict[str, Any], calibration: Tensor | None) -> None:
    """Write the .pth file, which `torch.load` reads without running code."""
    state = opened.model.state_dict()
    if form.precision == "float16":
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    torch.save(dict(state), path)


def read(opened: Model, path: Path) -> Callable[[Tensor], Tensor]:
    """torchvision's model with the weights in float32: normalised images (N, C, H, W) → logits (N, classes)."""
    state = torch.load(path, "cpu", weights_only=True)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    if opened.folder is None:
        return torch.inference_mode()(pretrained.from_state(opened.net.model, state))
    return torch.inference_mode()(plain_torchvision(opened.net, opened.preprocess, state))


def plain_torchvision(net: Net, preprocess: Preprocess, state: dict[str, Tensor]) -> nn.Module:
    """torchvision's own model with its last layer replaced, loaded with a state dict; none of this project's modules.

    Raises `UserError` for a head that is more than a last layer.
    """
    family, side = architectures.find(net.model), preprocess.crop
    if net.head == "concat_pool" or net.pool_size is not None or f"{family.head}.weight" not in state:
        part = f"the {net.head} head" + (f" with --pool-size {net.pool_size}" if net.pool_size else "")
        raise UserError(
            f"{part} is more than a last layer: torchvision's {net.model} cannot load its state dict. "
            f"Use --format torch-export or onnx."
        )
    options = dict(family.options) | (dict(family.pretrained_options) if net.weights != "none" else {})
    if family.aux:
        options["init_weights"] = False
    if family.size_argument:
        options[family.size_argument] = side if family.size_argument == "image_size" else (side, side)
    model = torchvision.models.get_model(net.model, weights=None, **options)
    for path in (family.head, *family.aux):
        classes, *width = state[f"{path}.weight"].shape
        layer = nn.Conv2d(width[0], classes, 1) if len(width) > 1 else nn.Linear(width[0], classes)
        model.set_submodule(path, layer)
    if family.after_head:
        model.set_submodule(family.after_head, nn.Identity())
    if net.in_channels != 3:
        first = model.get_submodule(family.first)
        first.in_channels, first.weight = net.in_channels, nn.Parameter(state[f"{family.first}.weight"])
        if hasattr(model, "transform_input"):
            model.transform_input = False
    model.load_state_dict(with_versions(model, state), strict=True)
    return model.eval()
