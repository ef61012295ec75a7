"""Loaders of a split's batches."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import signal
import sys
from functools import partial
from types import TracebackType
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from finetune.config.settings import Recipe
from finetune.data import crops
from finetune.data.dataset import Sample, Samples
from finetune.data.sampler import GlobalBatches, Shard, Views, check_pairs
from finetune.data.transforms import evaluation_transform, flipped_transforms, mixing, training_transform
from finetune.data.types import Split
from finetune.models.architectures import Preprocess
from finetune.runtime.devices import worker_count


class Batch(NamedTuple):
    """A micro-batch of N images."""

    images: Tensor
    """(N, C, H, W), uint8, or float32 in [0, 1] from arrays of floats; or (N, …), activations of the frozen part."""
    labels: Tensor
    """(N,), int64."""
    sample_weights: Tensor
    """(N,), float32: weights in the mean over the global batch; see `Draw.weight`."""
    indices: Tensor
    """(N,), int64: positions in the split."""
    positions: Tensor
    """(N,), int64: positions in the global batch."""
    labels_b: Tensor | None
    """(N,), int64: the labels of the images that are mixed in; None where nothing is mixed."""
    lam: Tensor | None
    """(N,), float32: the fraction of each mixed image that has its own label."""

    def targets(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Labels, sample weights, labels_b and lam on a device."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        labels_b, lam = (None if tensor is None else moved(tensor) for tensor in (self.labels_b, self.lam))
        return moved(self.labels), moved(self.sample_weights), labels_b, lam

    def split(self, parts: int) -> list[Batch]:
        """The micro-batches that `GlobalBatches` would make of it: every `parts`-th image each, none of them empty."""
        firsts = range(min(parts, len(self.labels)))
        return [Batch(*(None if tensor is None else tensor[k::parts] for tensor in self)) for k in firsts]


def make_loaders(
    splits: dict[str, Split],
    preprocess: Preprocess,
    recipe: Recipe,
    accelerator: Accelerator,
    pairs: bool = False,
    frozen_epochs: float = 0,
) -> dict[str, DataLoader]:
    """A loader of `Batch` per split: `train` shuffled and augmented, the others in order, transformed for evaluation.

    With `pairs`, each micro-batch of training has at least two images, as BatchNorm needs; raises `UserError` where
    that cannot be. The network's first depths are frozen in the first `frozen_epochs`. Do not give the loaders to
    `accelerator.prepare`: `GlobalBatches` already takes this process's part.
    """
    images, training, seed = recipe.images, recipe.training, recipe.run.seed
    shard = Shard(accelerator.process_index, accelerator.num_processes, training.loaded_micro_batches)
    workers = worker_count(images.workers, accelerator.device)
    ending = multiprocessing.RawValue(ctypes.c_byte) if workers else None
    if workers:
        atexit.register(setattr, ending, "value", 1)  # runs before multiprocessing's own handler
    loaders = {}
    for name, split in splits.items():
        count = len(split.labels)
        if name == "train":
            if pairs:
                check_pairs(count, training.batch_size, shard.accumulate, shard.processes)
            transform = training_transform(preprocess, images, crops.smallest(images, split, preprocess))
            mix = mixing(images.mixup, images.cutmix)
            labels = torch.tensor(split.labels)
            image_weights = 1 / torch.bincount(labels)[labels].double() if images.balanced else None
            # Without augmentation all views are the same. Mixed images differ in each epoch.
            views = Views(0 if mix else 1 if images.augment == "none" else images.views, frozen_epochs)
            batches = GlobalBatches(count, training.batch_size, seed, shard, image_weights, pairs, views)
        else:
            transform, mix = evaluation_transform(preprocess), None
            own = Shard(shard.process, shard.processes)
            batches = GlobalBatches(count, training.eval_batch_size * shard.processes, None, own)
        loaders[name] = DataLoader(
            Samples(split, len(preprocess.mean), transform, seed, mix),
            batch_sampler=batches,
            num_workers=workers,
            pin_memory=accelerator.device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=partial(_init_worker, ending),
            collate_fn=_collate if mix is None else _collate_mixed,
            generator=torch.Generator(),  # else iterators draw from the global one, which changes dropout
        )
    return loaders


def fixed_views(loader: DataLoader, preprocess: Preprocess, hflip: bool, vflip: bool) -> list[DataLoader]:
    """Loaders of a loader's images under the evaluation transform, and flipped in each way that is asked for.

    In a cross-validation the images are those of the whole pool, so that what is computed of them serves every fold.
    """
    samples, found = loader.dataset, []
    for transform in flipped_transforms(preprocess, hflip, vflip):
        found.append(
            DataLoader(
                Samples(samples.split.whole, samples.channels, transform, samples.seed),
                num_workers=loader.num_workers,
                pin_memory=loader.pin_memory,
                worker_init_fn=loader.worker_init_fn,
                collate_fn=_collate,
                generator=torch.Generator(),
            )
        )
    return found


def _init_worker(ending: ctypes.c_byte, worker: int) -> None:
    """Set a worker up: it leaves signals and broken connections to the training process, which must save first.

    At the training process's exit, multiprocessing sends each worker a SIGTERM and waits for it. By then `ending` is
    set, and the worker exits normally: torch raises an error in the training process for a worker killed by a signal.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # os._exit: the exit handlers were forked with the worker and are the training process's.
    signal.signal(signal.SIGTERM, lambda *_: ending.value and os._exit(0))
    sys.excepthook = _print_unless_disconnected


def _print_unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an uncaught error of a worker, unless the training process broke off while it received a batch.

    It breaks off where torch's signal handler raises the error for another worker that was killed. That error is
    reported; multiprocessing's thread, which hands the batch over, would add its traceback.
    """
    if not isinstance(error, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _collate(samples: list[Sample]) -> Batch:
    return _collate_mixed(samples)._replace(labels_b=None, lam=None)


def _collate_mixed(samples: list[Sample]) -> Batch:
    images, *numbers = zip(*samples, strict=True)
    # Decoders and resizing leave images as (H, W, C) in memory. Batches keep that layout: nothing is transposed.
    pixels = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)  # (N, C, H, W)
    batch = Batch(pixels, *map(torch.tensor, numbers))
    if get_worker_info():
        # Here and not by the queue that passes the batch on: its thread prints an error, and the run waits for ever.
        for tensor in batch:
            tensor.share_memory_()
    return batch
