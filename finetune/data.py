"""From files to batches: samples that depend on (seed, epoch, index) alone, and the order in which they come.

A sample's augmentation and a batch's members are pure functions of those numbers, so neither workers nor batch size
nor the number of processes changes what is seen.
"""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

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
from finetune.hardware import worker_count
from finetune.imagesets import Split
from finetune.recipe import Recipe


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


class Batch(NamedTuple):
    """What a loader yields."""

    images: Tensor
    """(N, C, H, W), uint8, or float32 in [0, 1] from arrays of floats; or (N, …), activations of a frozen part."""
    labels: Tensor
    """(N,), int64."""
    shares: Tensor
    """(N,), float32; see `Draw.share`."""
    indices: Tensor
    """(N,), int64: positions in the split."""
    places: Tensor
    """(N,), int64: positions in the global batch."""
    others: Tensor | None
    """(N,), int64: the labels of what is mixed in; None where nothing ever is."""
    mix: Tensor | None
    """(N,), float32: the share of the image that is of its own label."""

    def targets(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Labels, shares, others and mix on the device."""
        held = (self.labels, self.shares, self.others, self.mix)
        return tuple(t if t is None else t.to(device, non_blocking=True) for t in held)


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
            if image.mode[0] in "IF":  # deeper grey, which Pillow would clip at 255 instead of scaling
                pixels = np.asarray(image).astype(np.float64)
                scale = 1 / 257 if pixels.max() > 255 else 255 if image.mode == "F" and pixels.max() <= 1 else 1
                image = Image.fromarray((pixels * scale).clip(0, 255).astype(np.uint8))
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
    extra = {
        "basic": [],
        "strong": [v2.RandomRotation(25, InterpolationMode.BILINEAR), v2.ColorJitter(0.3, 0.3, 0.3, 0.05)],
        "rand": [v2.RandAugment()],
        "trivial": [v2.TrivialAugmentWide()],
    }
    interpolation = InterpolationMode(preprocess.interpolation)
    crop = v2.RandomResizedCrop(preprocess.crop, (crop_scale, 1.0), interpolation=interpolation, antialias=True)
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


class GlobalBatches(Sampler[list[Draw]]):
    """This process's part of each global batch.

    Every process cuts the same order into the same global batches and takes every `processes`-th image of each. A
    global batch smaller than the number of processes leaves some without an image: they get one of share 0, since all
    must take part in the exchange of gradients.

    Say `start_at` before iterating. With `seed=None` the order is that of the split. With `parts`, each global batch
    comes in so many, for gradients that are accumulated. With `weights` (one per image), images are drawn with
    replacement. A last batch of less than `fewest` images joins the one before. In the first `frozen` epochs, `views`
    views of each image take turns, if `views` is not 0.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int | None,
        process: int = 0,
        processes: int = 1,
        parts: int = 1,
        weights: Tensor | None = None,
        fewest: int = 1,
        views: int = 0,
        frozen: float = 0,
    ) -> None:
        self.count, self.seed, self.weights, self.parts = count, seed, weights, parts
        self.process, self.processes = process, processes
        self.views, self.frozen = views, frozen
        self.epoch = self.first = 0
        self.starts = list(range(0, count, batch_size))
        if seed is not None and 0 < count % batch_size < fewest and len(self.starts) > 1:
            self.starts.pop()

    @property
    def updates(self) -> int:
        """Global batches in an epoch."""
        return len(self.starts)

    @property
    def largest(self) -> int:
        """Images in the largest global batch."""
        return max(stop - start for start, stop in self._bounds())

    def start_at(self, epoch: int, first: int = 0) -> None:
        """Which epoch comes next, and from which of its global batches on."""
        self.epoch, self.first = epoch, first

    def _bounds(self) -> list[tuple[int, int]]:
        return list(zip(self.starts, [*self.starts[1:], self.count], strict=True))

    def view(self, epoch: int) -> int:
        """Which augmented view of its images an epoch sees."""
        return epoch % self.views if self.views and epoch < self.frozen else epoch

    def __len__(self) -> int:
        return (len(self.starts) - self.first) * self.parts

    def __iter__(self) -> Iterator[list[Draw]]:
        order = list(range(self.count))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(mixed(self.seed, self.epoch))
            if self.weights is None:
                order = torch.randperm(self.count, generator=generator).tolist()
            else:
                order = torch.multinomial(self.weights, self.count, replacement=True, generator=generator).tolist()
        view = self.view(self.epoch)
        for start, stop in self._bounds()[self.first :]:
            batch = order[start:stop]
            draws = [Draw(view, k, 1 / len(batch), batch[p - 1], p) for p, k in enumerate(batch)]
            for part in range(self.parts):
                mine = draws[self.process + self.processes * part :: self.processes * self.parts]
                yield mine or [draws[0]._replace(share=0.0)]


def _ignore_signals(worker: int) -> None:
    """A signal to the process group must not kill the workers before the training process has saved."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _end_workers() -> None:
    """At exit: workers that ignore SIGTERM would be waited for in vain after a crash."""
    for child in multiprocessing.active_children():
        child.kill()


def make_loaders(
    splits: dict[str, Split],
    preprocess: Preprocess,
    recipe: Recipe,
    accelerator: Accelerator,
    pairs: bool = False,
    frozen: float = 0,
) -> dict[str, DataLoader]:
    """A loader of `Batch` per split: `train` shuffled and augmented, the others in order and as in use.

    With `pairs`, each process has at least two images of every batch, of which BatchNorm can take statistics. `frozen`
    is the number of epochs in which the start of the network is. The loaders are not for `accelerator.prepare`, since
    `GlobalBatches` already takes this process's part.
    """
    images, training, seed = recipe.images, recipe.training, recipe.run.seed
    process, processes = accelerator.process_index, accelerator.num_processes
    workers = worker_count(images.workers, accelerator.device)
    if workers:
        atexit.register(_end_workers)
    loaders = {}
    for name, split in splits.items():
        if name == "train":
            transform = training_transform(preprocess, images.augment, images.crop_scale)
            mix = mixing(images.mixup, images.cutmix)
            labels = torch.tensor(split.labels)
            weights = 1 / torch.bincount(labels)[labels] if images.balanced else None
            batches = GlobalBatches(
                len(labels),
                training.batch_size,
                seed,
                process,
                processes,
                training.accumulate,
                weights,
                fewest=2 * processes * training.accumulate if pairs else 1,
                # Without augmentation all views are one. What is mixed with another image has no views of its own.
                views=0 if mix else 1 if images.augment == "none" else images.views,
                frozen=frozen,
            )
        else:
            transform, mix = evaluation_transform(preprocess), None
            batches = GlobalBatches(len(split.labels), training.eval_batch_size * processes, None, process, processes)
        loaders[name] = DataLoader(
            Samples(split, len(preprocess.mean), transform, seed, mix),
            batch_sampler=batches,
            num_workers=workers,
            pin_memory=accelerator.device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_signals,
            collate_fn=_collate if mix is None else _collate_mixed,
            generator=torch.Generator(),  # else each new iterator draws from the global one, and dropout moves
        )
    return loaders


def _collate(samples: list[tuple[Tensor, int, float, int, int, int, float]]) -> Batch:
    return _collate_mixed(samples)._replace(others=None, mix=None)


def _collate_mixed(samples: list[tuple[Tensor, int, float, int, int, int, float]]) -> Batch:
    images, *numbers = zip(*samples, strict=True)
    return Batch(torch.stack(images), *map(torch.tensor, numbers))


def to_input(images: Tensor, preprocess: Preprocess | None, device: torch.device, channels_last: bool) -> Tensor:
    """Images (N, C, H, W), uint8 or in [0, 1], on any device → normalised float32 ones on `device`.

    Without `preprocess` they are activations, which are taken as they are.
    """
    if preprocess is None:
        return images.to(device, non_blocking=True)
    scale = 255 if images.dtype == torch.uint8 else 1
    x = images.to(device, non_blocking=True).to(torch.float32)  # (N, C, H, W)
    mean = torch.tensor(preprocess.mean, device=device).view(1, -1, 1, 1) * scale
    std = torch.tensor(preprocess.std, device=device).view(1, -1, 1, 1) * scale
    x = x.sub(mean).div_(std)  # before the change of layout: a loop over three channels inside is slow on a CPU
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
