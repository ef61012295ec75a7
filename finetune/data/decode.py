"""Decode an image of any source into a tensor."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

from finetune.data.image_files import open_image, to_mode
from finetune.data.types import channel_axis
from finetune.errors import UserError


def load(item: str | bytes | np.ndarray | Image.Image | Tensor, channels: int) -> Tensor:
    """An image as (C, H, W): uint8, or float32 in [0, 1] where it comes from an array of floats.

    `item` is a path, a file's content, an array, an image of Pillow's, or a decoded tensor, which is returned
    unchanged. A file is turned upright by its EXIF orientation. For three channels, grey becomes red = green = blue;
    for one, colour becomes BT.601's luma. Raises `UserError`, with the path, for a file that does not decode or exceeds
    Pillow's limit (twice `Image.MAX_IMAGE_PIXELS`).
    """
    if isinstance(item, Tensor):
        return item
    if isinstance(item, np.ndarray):
        given, axis = channel_axis(item.shape)
        x = torch.from_numpy(np.array(item))
        x = x[None] if axis < 0 else x.movedim(axis, 0)  # (C, H, W)
        x = x.float() if x.is_floating_point() else x
        return x if given == channels else functional.rgb_to_grayscale(x, channels)
    mode = "L" if channels == 1 else "RGB"
    if isinstance(item, Image.Image):
        return functional.pil_to_tensor(item.convert(mode))
    try:
        # The header alone is read here; images that would fill the memory are refused.
        with open_image(item) as image:
            if channels == 3 and image.format in ("JPEG", "MPO"):  # MPO: JPEG with further pictures behind the first
                # As Pillow, but for rounding, in three quarters of its time. Pillow reads or explains what this cannot.
                with suppress(RuntimeError):
                    return decode_jpeg(_content(item), ImageReadMode.RGB, apply_exif_orientation=True)
            return functional.pil_to_tensor(to_mode(image, mode))
    except Exception as error:
        name = f"an image of {len(item)} bytes" if isinstance(item, bytes) else item
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{name} does not decode: {reason}") from error


def short_side(item: str | np.ndarray | Image.Image | Tensor) -> int:
    """Pixels of the shorter side of an image of any kind that `load` takes. Of a file, only the header is read.

    Raises `UserError`, with the path, for a file that is gone or no image.
    """
    if not isinstance(item, str):
        return min(load(item, channels=3).shape[1:])
    try:
        with open_image(item) as image:
            return min(image.size)
    except OSError as error:
        raise UserError(f"{item} does not decode: {error}") from error


def _content(item: str | bytes) -> Tensor:
    """A file's bytes, (N,) uint8."""
    return torch.from_numpy(
        np.frombuffer(bytearray(item), np.uint8) if isinstance(item, bytes) else np.fromfile(item, np.uint8)
    )
