"""From files to batches: samples that depend on (seed, epoch, index) alone, and the order in which they come.

A sample's augmentation and a batch's members are pure functions of those numbers, so neither workers nor batch size
nor the number of processes changes what is seen.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from finetune.archs import Preprocess
from finetune.arrays import channels as array_channels
from finetune.errors import UserError
from finetune.imagesets import Split
from finetune.recipe import Images, Training


class Draw(NamedTuple):
    """One sample of a batch: what `Samples` takes as an index."""

    epoch: int
    index: int
    share: float
    """Its weight in the mean over the global batch; 0 for one that only fills a process's empty batch."""


class Batch(NamedTuple):
    """What a loader yields."""

    images: Tensor
    """(N, C, H, W), uint8, or float32 in [0, 1] from arrays of floats."""
    labels: Tensor
    """(N,), int64."""
    shares: Tensor
    """(N,), float32; see `Draw.share`."""
    indices: Tensor
    """(N,), int64: positions in the split."""


def mixed(*numbers: int) -> int:
    """A 63-bit seed from several numbers, without the patterns that sums or products of them would have."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


def load(item: str | np.ndarray | Image.Image, channels: int) -> Tensor:
    """An image as (C, H, W): uint8, or float32 in [0, 1] where it comes from an array of floats.

    A file is turned upright by its EXIF orientation. Grey becomes red = green = blue and colour becomes BT.601's luma
    where the net wants it so. Raises `UserError` with the path of a file that does not decode.
    """
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
        with Image.open(item) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255 instead of scaling
                image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
            return functional.pil_to_tensor(image.convert(mode))
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


def training_transform(preprocess: Preprocess, augment: str, crop_scale: float) -> v2.Transform:
    """The random transform of `--augment`; uint8 in, uint8 out."""
    if augment == "none":
        return evaluation_transform(preprocess)
    interpolation = InterpolationMode(preprocess.interpolation)
    return v2.Compose(
        [
            v2.RandomResizedCrop(preprocess.crop, (crop_scale, 1.0), interpolation=interpolation, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    )


class Samples(Dataset):
    """Images of one split under a transform, indexed by `Draw`."""

    def __init__(self, split: Split, channels: int, transform: v2.Transform, seed: int) -> None:
        self.split, self.channels, self.transform, self.seed = split, channels, transform, seed

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int, float, int]:
        image = load(self.split.items[draw.index], self.channels)  # (C, H, W)
        with torch.random.fork_rng(devices=[]):
            # The CPU generator alone, which v2 draws from: torch.manual_seed would also visit every device.
            torch.random.default_generator.manual_seed(mixed(self.seed, draw.epoch, draw.index))
            image = self.transform(image)
        return image, self.split.labels[draw.index], draw.share, draw.index


class GlobalBatches(Sampler[list[Draw]]):
    """This process's part of each global batch.

    Every process cuts the same order into the same global batches and takes every `processes`-th image of each. A
    global batch smaller than the number of processes leaves some without an image: they get one of share 0, since all
    must take part in the exchange of gradients.

    Set `epoch` before iterating. With `seed=None` the order is that of the split.
    """

    def __init__(self, count: int, batch_size: int, seed: int | None, process: int = 0, processes: int = 1) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.process, self.processes = process, processes
        self.epoch = 0
        self.starts = list(range(0, count, batch_size))
        if seed is not None and count % batch_size == 1 and len(self.starts) > 1:
            self.starts.pop()  # one image has no batch statistics: it joins the batch before

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[Draw]]:
        order = list(range(self.count))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(mixed(self.seed, self.epoch))
            order = torch.randperm(self.count, generator=generator).tolist()
        for start, stop in zip(self.starts, [*self.starts[1:], self.count], strict=True):
            batch = order[start:stop]
            mine = batch[self.process :: self.processes]
            yield [Draw(self.epoch, k, 1 / len(batch)) for k in mine] or [Draw(self.epoch, batch[0], 0.0)]


def _ignore_signals(worker: int) -> None:
    """A signal to the process group must not kill the workers before the training process has saved."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def make_loaders(
    splits: dict[str, Split],
    preprocess: Preprocess,
    images: Images,
    training: Training,
    seed: int,
    workers: int,
    accelerator: Accelerator,
) -> dict[str, DataLoader]:
    """A loader of `Batch` per split: `train` shuffled and augmented, the others in order and as in use.

    They are not for `accelerator.prepare`, since `GlobalBatches` already takes this process's part.
    """
    process, processes = accelerator.process_index, accelerator.num_processes
    loaders = {}
    for name, split in splits.items():
        if name == "train":
            transform = training_transform(preprocess, images.augment, images.crop_scale)
            batches = GlobalBatches(len(split.labels), training.batch_size, seed, process, processes)
        else:
            transform = evaluation_transform(preprocess)
            batches = GlobalBatches(len(split.labels), training.eval_batch_size * processes, None, process, processes)
        loaders[name] = DataLoader(
            Samples(split, len(preprocess.mean), transform, seed),
            batch_sampler=batches,
            num_workers=workers,
            pin_memory=accelerator.device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_signals,
            collate_fn=_collate,
            generator=torch.Generator(),  # else each new iterator draws from the global one, and dropout moves
        )
    return loaders


def _collate(samples: list[tuple[Tensor, int, float, int]]) -> Batch:
    images, labels, shares, indices = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.tensor(labels), torch.tensor(shares), torch.tensor(indices))


def to_input(images: Tensor, preprocess: Preprocess, device: torch.device, channels_last: bool) -> Tensor:
    """Images (N, C, H, W), uint8 or in [0, 1], on any device → normalised float32 ones on `device`."""
    scale = 255 if images.dtype == torch.uint8 else 1
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = images.to(device, non_blocking=True).to(torch.float32, memory_format=layout)  # (N, C, H, W)
    mean = torch.tensor(preprocess.mean, device=device).view(1, -1, 1, 1) * scale
    std = torch.tensor(preprocess.std, device=device).view(1, -1, 1, 1) * scale
    return x.sub_(mean).div_(std)
