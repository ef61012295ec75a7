"""Exact scores of a model on a split, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader

from finetune.archs import Preprocess
from finetune.figures import Guesses
from finetune.samples import to_input


@dataclass(frozen=True)
class Scores:
    """What a model says of every image of a split, in the split's order; N images, k = min(5, classes) guesses."""

    losses: Tensor
    """(N,) float32, cross-entropy in nats."""
    guesses: Tensor
    """(N, k) int64, classes, most probable first."""
    probabilities: Tensor
    """(N, k) float32, of `guesses`."""
    labels: Tensor
    """(N,) int64."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return self.losses.double().mean().item()

    @property
    def accuracy(self) -> float:
        """Share of images whose first guess is right."""
        return (self.guesses[:, 0] == self.labels).double().mean().item()

    @property
    def top5(self) -> float:
        """Share of images whose class is among the k guesses."""
        return (self.guesses == self.labels[:, None]).any(1).double().mean().item()

    def first(self) -> Guesses:
        """The first guesses alone, as arrays."""
        return Guesses(self.labels.numpy(), self.guesses[:, 0].numpy(), self.probabilities[:, 0].double().numpy())


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    preprocess: Preprocess | None,
    channels_last: bool,
    accelerator: Accelerator,
    stop: Callable[[], bool] = lambda: False,
    fill: int = 0,
) -> Scores | None:
    """Score a model. All processes take part, and all get the scores of the whole split; None if `stop` said so.

    With `fill`, batches are filled up to so many images: how an image's logits are rounded depends on the number of
    images that are computed with it, and on nothing else about them.

    Results are gathered per image and reduced afterwards, in the split's order, so that neither the number of
    processes nor the evaluation batch enters the figures.
    """
    model.eval()
    if accelerator.num_processes > 1:  # BatchNorm's statistics are each process's own: the main one's count
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))
    count = len(loader.dataset)
    integers, reals = [], []
    for batch in loader:
        if stop():
            return None
        x = to_input(filled(batch.images, fill), preprocess, accelerator.device, channels_last)  # (N, C, H, W)
        labels = batch.labels.to(accelerator.device)
        with accelerator.autocast():
            logits = model(x).float()[: len(labels)]  # (N, classes)
        losses = F.cross_entropy(logits, labels, reduction="none")  # (N,)
        probabilities, guesses = logits.softmax(1).topk(min(5, logits.shape[1]))  # (N, k)
        # A process without an image of its own in the last batch sent one of share 0: index -1 leaves it out.
        indices = torch.where(batch.shares > 0, batch.indices, -1).to(accelerator.device)
        integers.append(torch.cat([indices[:, None], labels[:, None], guesses], 1))
        reals.append(torch.cat([losses[:, None], probabilities], 1))
    integer, real = torch.cat(integers), torch.cat(reals)
    integer = accelerator.gather(accelerator.pad_across_processes(integer, pad_index=-1)).cpu()
    real = accelerator.gather(accelerator.pad_across_processes(real)).cpu()
    mine = integer[:, 0] >= 0
    integer, real = integer[mine], real[mine]
    order = integer[:, 0].argsort()
    integer, real = integer[order], real[order]
    assert torch.equal(integer[:, 0], torch.arange(count)), f"{len(integer)} results for {count} images"
    return Scores(real[:, 0], integer[:, 2:], real[:, 1:], integer[:, 1])


def filled(images: Tensor, size: int) -> Tensor:
    """Images (N, …) with the last one repeated until there are `size`; all of them where there are more."""
    missing = size - len(images)
    return torch.cat([images, images[-1:].expand(missing, *images.shape[1:])]) if missing > 0 else images
