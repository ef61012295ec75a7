"""From an image to a sample: decoded, augmented as (seed, epoch, index) say, and normalised on the device.

A sample is a pure function of those numbers, so neither workers nor batch size nor the number of processes changes what
is seen.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from finetune.archs import Preprocess
from finetune.arrays import channels as array_channels
from finetune.errors import UserError
from finetune.folders import of_bytes
from finetune.imagesets import Split


class Draw(NamedTuple):
    """One sample of a batch: what `Samples` takes as an index."""

    epoch: int
    """Which of the image's augmented views: see `GlobalBatches.view`."""
    index: int
    share: float
    """Its weight in the mean over the global batch; 0 for one that only fills a process's empty batch."""
    partner: int = -1
    """The image of the same batch that it may be mixed with."""
    place: int = 0
    """Its position in the global batch."""


def mixed(*numbers: int) -> int:
    """A 63-bit seed from several numbers, without the patterns that sums or products of them would have."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


def load(item: str | np.ndarray | Image.Image | Tensor, channels: int) -> Tensor:
    """An image as (C, H, W): uint8, or float32 in [0, 1] where it comes from an array of floats.

    A tensor is what this gave before. A file is turned upright by its EXIF orientation. Grey becomes red = green = blue
    and colour becomes BT.601's luma where the net wants it so. Raises `UserError` with the path of a file that does not
    decode.
    """
    if isinstance(item, Tensor):
        return item
    if isinstance(item, np.ndarray):
        given, axis = array_channels(item.shape)
        x = torch.from_numpy(np.array(item))
        x = x[None] if axis < 0 else x.movedim(axis, 0)  # (C, H, W)
        x = x.float() if x.is_floating_point() else x
        return x if given == channels else functional.rgb_to_grayscale(x, channels)
    mode = "L" if channels == 1 else "RGB"
    if isinstance(item, Image.Image):
        return functional.pil_to_tensor(item.convert(mode))
    try:
        with Image.open(item) as image:  # reads the header, and refuses what would fill the memory, as training's check
            if channels == 3 and item.lower().endswith((".jpg", ".jpeg")):
                # The same values in three quarters of Pillow's time, which reads what this does not and says what is
                # damaged.
                with suppress(RuntimeError):
                    return decode_jpeg(read_file(item), ImageReadMode.RGB, apply_exif_orientation=True)
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode[0] in "IF":
                image = of_bytes(image)
            return functional.pil_to_tensor(image if image.mode == mode else image.convert(mode))
    except Exception as error:
        raise UserError(f"{item} does not decode: {error}") from error


def evaluation_transform(preprocess: Preprocess) -> v2.Transform:
    """Resize the short side, crop the centre; uint8 in, uint8 out. Normalisation comes later, for a whole batch."""
    return v2.Compose(
        [
            v2.Resize(preprocess.resize, InterpolationMode(preprocess.interpolation), antialias=True),
            v2.CenterCrop(preprocess.crop),
        ]
    )


class RandomResizedCrop(v2.RandomResizedCrop):
    """Torchvision's own, to the bit, in less time: a colour image's crop is handed on as resizing on a CPU takes it."""

    def transform(self, inpt: Tensor, params: dict[str, int]) -> Tensor:
        """(C, H, W) → (C, size, size)."""
        part = functional.crop(inpt, **params)[None].contiguous(memory_format=torch.channels_last)[0]
        return functional.resize(part, self.size, self.interpolation, antialias=self.antialias)


def training_transform(preprocess: Preprocess, augment: str, crop_scale: float) -> v2.Transform:
    """The random transform of `--augment`; uint8 in, uint8 out."""
    if augment == "none":
        return evaluation_transform(preprocess)
    extra = {
        "basic": [],
        "strong": [v2.RandomRotation(25, InterpolationMode.BILINEAR), v2.ColorJitter(0.3, 0.3, 0.3, 0.05)],
        "rand": [v2.RandAugment()],
        "trivial": [v2.TrivialAugmentWide()],
    }
    interpolation = InterpolationMode(preprocess.interpolation)
    crop = RandomResizedCrop(preprocess.crop, (crop_scale, 1.0), interpolation=interpolation, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *extra[augment]])


def mixing(mixup: float, cutmix: float) -> v2.Transform | None:
    """The transform that mixes two images, or None."""
    chosen = [v2.MixUp(alpha=mixup, num_classes=2)] if mixup else []
    chosen += [v2.CutMix(alpha=cutmix, num_classes=2)] if cutmix else []
    return v2.RandomChoice(chosen) if chosen else None


class Samples(Dataset):
    """Images of one split under a transform, indexed by `Draw`."""

    def __init__(
        self, split: Split, channels: int, transform: v2.Transform, seed: int, mix: v2.Transform | None = None
    ) -> None:
        self.split, self.channels, self.transform, self.seed, self.mix = split, channels, transform, seed, mix

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int, float, int, int, int, float]:
        image, label = self._view(draw.epoch, draw.index), self.split.labels[draw.index]
        if self.mix is None:
            return image, label, draw.share, draw.index, draw.place, label, 1.0
        pair = torch.stack([image, self._view(draw.epoch, draw.partner)])  # (2, C, H, W)
        mixed_pair, shares = self._seeded(self.mix, pair.float(), torch.tensor([0, 1]), of=(draw.epoch, draw.index, 1))
        image = mixed_pair[0].round().to(image.dtype) if image.dtype == torch.uint8 else mixed_pair[0]
        other = self.split.labels[draw.partner]
        return image, label, draw.share, draw.index, draw.place, other, shares[0, 0].item()

    def _view(self, epoch: int, index: int) -> Tensor:
        image = load(self.split.items[index], self.channels)  # (C, H, W)
        return self._seeded(self.transform, image, of=(epoch, index))

    def _seeded(self, transform: v2.Transform, *inputs: Tensor, of: tuple[int, ...]) -> Any:
        # The CPU generator alone, which v2 draws from: torch.manual_seed would also visit every device.
        generator = torch.random.default_generator
        state = generator.get_state()
        generator.manual_seed(mixed(self.seed, *of))
        try:
            return transform(*inputs)
        finally:
            generator.set_state(state)


def to_input(images: Tensor, preprocess: Preprocess | None, device: torch.device, channels_last: bool) -> Tensor:
    """Images (N, C, H, W), uint8 or in [0, 1], on any device → normalised float32 ones on `device`.

    Without `preprocess` they are activations, which are taken as they are.
    """
    if preprocess is None:
        return images.to(device, non_blocking=True)
    x = images.to(device, non_blocking=True).permute(0, 2, 3, 1).contiguous()  # (N, H, W, C), still of one byte a value
    mean, std = _rows(preprocess, x.shape[2], 255 if images.dtype == torch.uint8 else 1, device)
    # A row of pixels at once: a loop over three channels inside is slow on a CPU.
    x = x.flatten(2).to(torch.float32).sub_(mean).div_(std).view(x.shape).permute(0, 3, 1, 2)  # (N, C, H, W)
    return x if channels_last else x.contiguous()


@cache
@torch.inference_mode(False)  # they serve in training too
def _rows(preprocess: Preprocess, width: int, scale: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Means and deviations for all values of a row of pixels, (W * C,) each, in the images' own scale."""
    mean, std = (torch.tensor(values).repeat(width) * scale for values in (preprocess.mean, preprocess.std))
    return mean.to(device), std.to(device)
