"""Transforms: from a decoded image to the network's input size, and from a batch to the network's input."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from finetune.config.settings import Images
from finetune.models.architectures import Preprocess


def evaluation_transform(preprocess: Preprocess) -> v2.Transform:
    """Make an image square by `Preprocess.fit`; the type stays. Batches are normalised later (`to_input`)."""
    side, interpolation = preprocess.crop, InterpolationMode(preprocess.interpolation)
    if preprocess.fit == "squash":
        return v2.Resize((side, side), interpolation, antialias=True)
    if preprocess.fit == "pad":
        return ResizeAndPad(side, interpolation, preprocess.mean)
    return v2.Compose([v2.Resize(preprocess.resize, interpolation, antialias=True), v2.CenterCrop(side)])


class ResizeAndPad(v2.Transform):
    """Resize the long side, and pad the short one evenly with the mean colour.

    Normalisation makes it zero, with which convolutions pad too.
    """

    def __init__(self, size: int, interpolation: InterpolationMode, mean: tuple[float, ...]) -> None:
        super().__init__()
        self.size, self.interpolation, self.mean = size, interpolation, mean

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """(C, H, W) → (C, size, size)."""
        longest = max(inpt.shape[-2:])
        height, width = (max(1, self.size * side // longest) for side in inpt.shape[-2:])
        x = functional.resize(inpt, [height, width], self.interpolation, antialias=True)
        fill = [round(255 * value) for value in self.mean] if x.dtype == torch.uint8 else list(self.mean)
        left, top = (self.size - width) // 2, (self.size - height) // 2
        return functional.pad(x, [left, top, self.size - width - left, self.size - height - top], fill=fill)


def flipped_transforms(preprocess: Preprocess, hflip: bool, vflip: bool) -> list[v2.Transform]:
    """The evaluation transform, and the same followed by each flip that is asked for, and by both."""
    found, plain = [], evaluation_transform(preprocess)
    for down in (False, True)[: 1 + vflip]:
        for mirrored in (False, True)[: 1 + hflip]:
            flips = [v2.RandomHorizontalFlip(p=1.0)] * mirrored + [v2.RandomVerticalFlip(p=1.0)] * down
            found.append(v2.Compose([plain, *flips]) if flips else plain)
    return found


class RandomResizedCrop(v2.RandomResizedCrop):
    """torchvision's, to the bit, but faster: the crop is in channels-last memory, which a CPU resizes fastest."""

    def transform(self, inpt: Tensor, params: dict[str, int]) -> Tensor:
        """(C, H, W) → (C, size, size)."""
        crop = functional.crop(inpt, **params)[None].contiguous(memory_format=torch.channels_last)[0]
        return functional.resize(crop, self.size, self.interpolation, antialias=self.antialias)


class RandomPart(v2.RandomResizedCrop):
    """A random part of an image, not resized: torchvision's random crop of the image as a square.

    So its aspect ratio is about that of the image.
    """

    def make_params(self, flat_inputs: list[Tensor]) -> dict[str, int]:
        """Top, left, height and width, in pixels."""
        height, width = flat_inputs[0].shape[-2:]
        side = max(height, width)
        part = super().make_params([flat_inputs[0].new_empty(()).expand(1, side, side)])
        return {
            "top": part["top"] * height // side,
            "left": part["left"] * width // side,
            "height": max(1, part["height"] * height // side),
            "width": max(1, part["width"] * width // side),
        }

    def transform(self, inpt: Tensor, params: dict[str, int]) -> Tensor:
        """(C, H, W) → (C, height, width)."""
        return functional.crop(inpt, **params)


class RandomErasing(v2.RandomErasing):
    """torchvision's, to the mean colour, which normalisation makes zero."""

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """(C, H, W) → (C, H, W)."""
        if params["v"] is not None and inpt.dtype == torch.uint8:
            params = params | {"v": (params["v"] * 255).round()}
        return super().transform(inpt, params)


def training_transform(preprocess: Preprocess, images: Images, smallest_crop: float) -> v2.Transform:
    """The random transform of `--augment`, with crops of at least this fraction of an image's area; the type stays."""
    if images.augment == "none":
        return evaluation_transform(preprocess)
    extra = {
        "basic": [],
        "strong": [v2.RandomRotation(25, InterpolationMode.BILINEAR), v2.ColorJitter(0.3, 0.3, 0.3, 0.05)],
        "rand": [v2.RandAugment()],
        "trivial": [v2.TrivialAugmentWide()],
    }
    size, scale = preprocess.crop, (smallest_crop, 1.0)
    if preprocess.fit == "crop":
        interpolation = InterpolationMode(preprocess.interpolation)
        crop = [RandomResizedCrop(size, scale, interpolation=interpolation, antialias=True)]
    else:  # as in evaluation: squashed, or padded, as much as the image
        crop = [RandomPart(size, scale), evaluation_transform(preprocess)]
    flips = [v2.RandomHorizontalFlip()] * images.hflip + [v2.RandomVerticalFlip()] * images.vflip
    last = [RandomErasing(images.erase, value=preprocess.mean)] if images.erase else []
    return v2.Compose([*crop, *flips, *extra[images.augment], *last])


def mixing(mixup: float, cutmix: float) -> v2.Transform | None:
    """The transform that mixes a pair of images, (2, C, H, W) and labels (2,), or None where both are 0."""
    chosen = [v2.MixUp(alpha=mixup, num_classes=2)] if mixup else []
    chosen += [v2.CutMix(alpha=cutmix, num_classes=2)] if cutmix else []
    return v2.RandomChoice(chosen) if chosen else None


def to_input(images: Tensor, preprocess: Preprocess | None, device: torch.device, channels_last: bool) -> Tensor:
    """Images (N, C, H, W), uint8 or in [0, 1], on any device → normalised float32 images on `device`.

    Without `preprocess` they are activations, and only moved.
    """
    if preprocess is None:
        return images.to(device, non_blocking=True)
    x = images.to(device, non_blocking=True).permute(0, 2, 3, 1).contiguous()  # (N, H, W, C), still uint8
    mean, std = _rows(preprocess, x.shape[2], 255 if images.dtype == torch.uint8 else 1, device)
    # Whole rows of pixels at a time: an inner loop over three channels is slow on a CPU.
    x = x.flatten(2).to(torch.float32).sub_(mean).div_(std).view(x.shape).permute(0, 3, 1, 2)  # (N, C, H, W)
    return x if channels_last else x.contiguous()


@cache
@torch.inference_mode(False)  # a tensor made in inference mode cannot be used in training
def _rows(preprocess: Preprocess, width: int, scale: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation for each value of a row of pixels, each (W * C,), in the images' scale."""
    mean, std = (torch.tensor(values).repeat(width) * scale for values in (preprocess.mean, preprocess.std))
    return mean.to(device), std.to(device)
