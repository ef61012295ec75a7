"""Dropout that depends on (seed, update, position in the global batch) alone.

torch draws dropout from one generator per process, so that another number of processes, another accumulation or a
restart gives other masks. Here each layer draws the mask of the whole global batch from a seed of its own and takes
the rows of the images at hand: a run on two processes drops what a run on one drops, and a resumed run what it would
have dropped, with no state to save.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from finetune.samples import mixed

DROPPING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, StochasticDepth)


class Noise:
    """The masks of a model's dropout layers; says `at` which update and images before each forward pass."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.seed, self.update, self.places, self.batch_size = seed, 0, torch.zeros(0, dtype=torch.long), 0
        layers = (module for module in model.modules() if isinstance(module, DROPPING) and module.p)
        for number, layer in enumerate(layers):
            # On the instance: the class, its place in the tree and the state dict's keys stay torchvision's.
            layer.forward = partial(self._drop, layer, number)

    def at(self, update: int, places: Tensor, batch_size: int) -> None:
        """The next forward pass is of these images: `places` (N,) in a global batch of at most `batch_size`."""
        self.update, self.places, self.batch_size = update, places, batch_size

    @torch.compiler.disable
    def _drop(self, layer: nn.Module, number: int, x: Tensor) -> Tensor:
        """Inverted dropout (Srivastava et al. 2014) or stochastic depth (Huang et al. 2016) of x, (N, ...)."""
        if not layer.training:
            return x
        assert len(x) == len(self.places), f"{type(layer).__name__} sees {len(x)} rows of {len(self.places)} images"
        # Dropout takes single values, its 1d to 3d kinds whole channels, stochastic depth all of an image.
        axes = 0 if isinstance(layer, StochasticDepth) else x.ndim if isinstance(layer, nn.Dropout) else 1
        units = x.shape[1 : axes + 1]
        last = len(units) == 3 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        units = (*units[1:], units[0]) if last else units  # drawn in the order of the memory, which is read once
        # Eight random bits a value where they hold the probability, as of a half, else sixteen: right to 1 / 65536.
        kind, steps = (torch.int8, 256) if layer.p * 256 % 1 == 0 else (torch.int16, 65536)
        count, drop = self.batch_size * math.prod(units), min(round(layer.p * steps), steps - 1)
        place = x.device if x.device.type in ("cpu", "cuda") else torch.device("cpu")  # others draw in their own ways
        generator = torch.Generator(place).manual_seed(mixed(self.seed, self.update, number))
        bits = torch.empty(-(-count * kind.itemsize // 8), dtype=torch.int64, device=place)
        bits = bits.random_(-(2**63), None, generator=generator).view(kind)[:count].to(x.device)
        kept = bits.ge_(drop - steps // 2).view(self.batch_size, *units)  # 0 or 1; as booleans they would take longer
        if len(self.places) < self.batch_size:
            kept = kept[self.places]
        kept = kept.movedim(-1, 1) if last else kept.view(*kept.shape, *[1] * (x.ndim - kept.ndim))
        return x * kept.to(x.dtype).mul_(steps / (steps - drop))
