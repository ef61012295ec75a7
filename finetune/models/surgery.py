"""Adapt a torchvision model: its first layer to the input channels, its head to the classes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
import torchvision
from accelerate import init_empty_weights
from torch import nn

from finetune.config.settings import Net
from finetune.errors import UserError
from finetune.models import weights
from finetune.models.architectures import Family, Preprocess, find, preprocess, stages
from finetune.models.heads import replace_head

# Weights of red, green and blue in greyscale (ITU-R BT.601), as in Pillow.
LUMA = (0.299, 0.587, 0.114)


def build(
    net: Net, classes: int, empty: bool = False, restored: Preprocess | None = None
) -> tuple[nn.Module, Preprocess, list[list[str]]]:
    """A torchvision model with a new head, its evaluation transform, and the module paths at each depth.

    All layers but the heads have the weights that `net.weights` names; with `none`, torchvision's random
    initialisation, drawn from torch's global generator. The transform is that of the weights. Keys are torchvision's.

    With `empty`, parameters are on the meta device and torchvision's weights are not downloaded: enough for a plan.
    `restored` is the transform of a checkpoint; no weights are read then, because the checkpoint replaces them.

    Raises `UserError` for weights that cannot be read or do not fit, and for a head or an input size that the
    architecture does not support.
    """
    family = find(net.model)
    transform, state = restored or preprocess(net.model), None
    if net.weights != "none" and not restored and not (empty and net.weights == "default"):
        state, own_transform = weights.read(net.model, net.weights)
        transform = own_transform or transform
    if net.image_size is not None and not restored:
        transform = transform.at_size(net.image_size)
    model = torchvision_model(net, family, transform.crop, empty or state is not None)
    if state is not None:
        weights.load(model, family, state, f"--weights {net.weights}", net.model)
    if net.in_channels != 3:
        transform = convert_first_layer(model, family, transform, net.in_channels, net.first_layer)
    head = replace_head(model, family, net, classes, transform.crop)
    return model, restored or transform, stages(model, family, head)


def skeleton(net: Net, classes: int, preprocess: Preprocess) -> nn.Module:
    """The model that `build` makes, with its parameters on the meta device: no memory is allocated."""
    family = find(net.model)
    model = torchvision_model(net, family, preprocess.crop, empty=True)
    with torch.device("meta"):
        if net.in_channels != 3:
            convert_first_layer(model, family, preprocess, net.in_channels, net.first_layer)
        replace_head(model, family, net, classes, preprocess.crop)
    return model


def torchvision_model(net: Net, family: Family, side: int, empty: bool) -> nn.Module:
    """torchvision's model for square images of this side in pixels; if `empty`, on the meta device."""
    options = dict(family.options)
    if family.size_argument:
        options[family.size_argument] = side if family.size_argument == "image_size" else (side, side)
    if net.weights != "none":
        options |= dict(family.pretrained_options)
    elif family.aux:
        options["init_weights"] = True
    try:
        # Weights from a file need no initialisation, which takes seconds for a large model.
        with init_empty_weights(include_buffers=False) if empty else nullcontext():
            return torchvision.models.get_model(net.model, weights=None, **options)
    except (ValueError, AssertionError) as error:
        raise UserError(f"{net.model} cannot be built for images of {side} pixels: {error}") from error


def convert_first_layer(model: nn.Module, family: Family, transform: Preprocess, channels: int, how: str) -> Preprocess:
    """Convert the first layer from three input channels to another number; returns the transform for that number.

    To one channel by `sum`: the kernels of the three channels are added, so that grey input gives the activations of
    its RGB copy. By `luma`: they are added with the weights of BT.601, which makes them a third as strong on average.
    To several: the three are repeated in turn and scaled by 3 / channels, as in timm (`adapt_input_conv`).
    """
    old = model.get_submodule(family.first)
    rgb = old.weight.detach()  # (out, 3, h, w)
    if channels == 1:
        of_channel = torch.tensor(LUMA if how == "luma" else (1.0, 1.0, 1.0), dtype=rgb.dtype, device=rgb.device)
        weight = (rgb * of_channel.view(1, 3, 1, 1)).sum(1, keepdim=True)  # (out, 1, h, w)
    else:
        weight = rgb[:, [k % 3 for k in range(channels)]] * (3 / channels)  # (out, channels, h, w)
    old.in_channels = channels
    old.weight = nn.Parameter(weight)
    mean, std = transform.mean, transform.std
    if getattr(model, "transform_input", False):
        # The model itself renormalises its three input channels to mean and std 0.5: the transform does that instead.
        model.transform_input, mean, std = False, (0.5,) * 3, (0.5,) * 3
    if channels == 1:
        return replace(transform, mean=(sum(mean) / 3,), std=(sum(std) / 3,))
    repeated = range(channels)
    return replace(transform, mean=tuple(mean[k % 3] for k in repeated), std=tuple(std[k % 3] for k in repeated))
