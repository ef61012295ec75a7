"""The evaluation transform as one function, for images of any kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from finetune.data.decode import load
from finetune.data.transforms import evaluation_transform, to_input
from finetune.models.architectures import Preprocess

AnyImage: TypeAlias = "str | Path | Image.Image | np.ndarray | Tensor"


def make_transform(preprocess: Preprocess) -> Callable[[Any], Tensor]:
    """A function from an image, or a list of them, to a network's input (N, C, H, W), float32, normalised, on the CPU.

    An image is a path, a PIL image, an array, or a tensor (C, H, W) of uint8 or of floats in [0, 1]. The function
    raises `ValueError` for a tensor of another shape or type, and `UserError` for a file that does not decode.
    """
    to_square, channels = evaluation_transform(preprocess), len(preprocess.mean)

    def transform(images: AnyImage | Sequence[AnyImage]) -> Tensor:
        listed = images if isinstance(images, list | tuple) else [images]
        x = torch.stack([to_square(_to_tensor(image, channels)) for image in listed])  # (N, C, H, W)
        return to_input(x, preprocess, torch.device("cpu"), channels_last=True)

    return transform


def _to_tensor(image: AnyImage, channels: int) -> Tensor:
    """An image as (channels, H, W)."""
    if not isinstance(image, Tensor):
        return load(str(image) if isinstance(image, Path) else image, channels)
    if image.ndim != 3 or (image.dtype != torch.uint8 and not image.is_floating_point()):
        raise ValueError(f"an image is a tensor (C, H, W) of uint8 or floats, not {tuple(image.shape)} {image.dtype}")
    if len(image) == channels:
        return image
    if {len(image), channels} != {1, 3}:
        raise ValueError(f"this model takes {channels} channels; the image has {len(image)}")
    return functional.rgb_to_grayscale(image) if channels == 1 else image.expand(3, -1, -1)
