"""Dropout that depends on (seed, step, position in the global batch) alone.

torch draws dropout from one generator per process: another number of processes, another accumulation or a restart gives
other masks. Here each layer draws the mask of the whole global batch from a seed of its own, and takes the rows of the
micro-batch's images. The masks are then the same on any number of processes and after a restart, with no state to save.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from finetune.data.dataset import combined_seed

DROPPING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, StochasticDepth)


class Masks:
    """The masks of a model's dropout layers. Call `at` before each forward pass, for its step and images."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.seed, self.step, self.positions, self.batch_size = seed, 0, torch.zeros(0, dtype=torch.long), 0
        layers = (module for module in model.modules() if isinstance(module, DROPPING) and module.p)
        for number, layer in enumerate(layers):
            # Patched on the instance: its class, its path and the keys of the state dict stay torchvision's.
            layer.forward = partial(self._drop, layer, number)

    def at(self, step: int, positions: Tensor, batch_size: int) -> None:
        """Set the step and the images of the next forward pass.

        The images are at `positions` (N,) in a global batch of at most `batch_size`.
        """
        self.step, self.positions, self.batch_size = step, positions, batch_size

    @torch.compiler.disable
    def _drop(self, layer: nn.Module, number: int, x: Tensor) -> Tensor:
        """Inverted dropout (Srivastava et al. 2014) or stochastic depth (Huang et al. 2016) of x, (N, ...)."""
        if not layer.training:
            return x
        assert len(x) == len(self.positions), (
            f"{type(layer).__name__} got {len(x)} rows for {len(self.positions)} images"
        )
        # Dropout drops single values, its 1d to 3d kinds whole channels, stochastic depth an image's whole branch.
        axes = 0 if isinstance(layer, StochasticDepth) else x.ndim if isinstance(layer, nn.Dropout) else 1
        units = x.shape[1 : axes + 1]
        # Drawn in x's order in memory, so that both are read sequentially.
        last = len(units) == 3 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        units = (*units[1:], units[0]) if last else units
        # Eight random bits per value where they represent the probability exactly (0.5 does), else sixteen.
        kind, levels = (torch.int8, 256) if layer.p * 256 % 1 == 0 else (torch.int16, 65536)
        count, drop = self.batch_size * math.prod(units), min(round(layer.p * levels), levels - 1)
        device = x.device if x.device.type in ("cpu", "cuda") else torch.device("cpu")  # others differ
        generator = torch.Generator(device).manual_seed(combined_seed(self.seed, self.step, number))
        bits = torch.empty(-(-count * kind.itemsize // 8), dtype=torch.int64, device=device)
        bits = bits.random_(-(2**63), None, generator=generator).view(kind)[:count].to(x.device)
        kept = bits.ge_(drop - levels // 2).view(self.batch_size, *units)  # 0 or 1; booleans are slower
        if len(self.positions) < self.batch_size:
            kept = kept[self.positions]
        kept = kept.movedim(-1, 1) if last else kept.view(*kept.shape, *[1] * (x.ndim - kept.ndim))
        return x * kept.to(x.dtype).mul_(levels / (levels - drop))
