"""Samples: decoded and augmented images, each a pure function of (seed, view, index).

Neither workers nor batch size nor the number of processes changes them.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from finetune.data.decode import load
from finetune.data.types import Split


class Draw(NamedTuple):
    """One image of a batch; the index that `Samples` takes."""

    view: int
    """Which of the image's augmented views; see `sampler.Views`."""
    index: int
    """Position in the split."""
    weight: float
    """Sample weight: its weight in the mean over the global batch. 0 for one that only fills an empty micro-batch."""
    partner: int = -1
    """Position in the split of the image of the same batch that it may be mixed with."""
    position: int = 0
    """Position in the global batch."""


class Sample(NamedTuple):
    """One image as the network is trained on it, with its numbers."""

    image: Tensor
    """(C, H, W)."""
    label: int
    weight: float
    """`Draw.weight`."""
    index: int
    position: int
    """`Draw.position`."""
    label_b: int
    """The label of the image that is mixed in; its own where none is."""
    lam: float
    """The fraction of its own label."""


def combined_seed(*numbers: int) -> int:
    """A 63-bit seed from several numbers, without the collisions that sums or products of them would have."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


class Samples(Dataset):
    """Images of one split under a transform, indexed by `Draw`."""

    def __init__(
        self, split: Split, channels: int, transform: v2.Transform, seed: int, mix: v2.Transform | None = None
    ) -> None:
        self.split, self.channels, self.transform, self.seed, self.mix = split, channels, transform, seed, mix

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, draw: Draw) -> Sample:
        image, label = self._view(draw.view, draw.index), self.split.labels[draw.index]
        if self.mix is None:
            return Sample(image, label, draw.weight, draw.index, draw.position, label, 1.0)
        pair = torch.stack([image, self._view(draw.view, draw.partner)])  # (2, C, H, W)
        mixed_pair, targets = self._seeded(self.mix, pair.float(), torch.tensor([0, 1]), of=(draw.view, draw.index, 1))
        image = mixed_pair[0].round().to(image.dtype) if image.dtype == torch.uint8 else mixed_pair[0]
        label_b = self.split.labels[draw.partner]
        return Sample(image, label, draw.weight, draw.index, draw.position, label_b, targets[0, 0].item())

    def _view(self, view: int, index: int) -> Tensor:
        image = load(self.split.items[index], self.channels)  # (C, H, W)
        return self._seeded(self.transform, image, of=(view, index))

    def _seeded(self, transform: v2.Transform, *inputs: Tensor, of: tuple[int, ...]) -> Any:
        # v2 draws from the CPU's generator alone. torch.manual_seed would seed every device, in 30 times the time.
        generator = torch.random.default_generator
        state = generator.get_state()
        generator.manual_seed(combined_seed(self.seed, *of))
        try:
            return transform(*inputs)
        finally:
            generator.set_state(state)
