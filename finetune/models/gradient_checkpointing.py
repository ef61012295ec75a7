"""Gradient checkpointing (Chen et al. 2016): a block's activations are computed again in the backward pass, not kept.

A block keeps its input alone, so a step needs the memory of one block's activations at a time, and one more forward
pass of the trained blocks. The gradients are the same to the bit: dropout draws the same masks again (see
`training.dropout`), and BatchNorm updates its statistics in the first pass alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def blocks(model: nn.Module, stages: list[list[str]]) -> list[nn.Module]:
    """The blocks of all stages before the head: modules of several layers, such as residual or transformer blocks.

    VGG and AlexNet have none: theirs are single layers.
    """
    modules = dict(model.named_modules())
    return [found for paths in stages[:-1] for path in paths if path in modules for found in _inside(modules[path])]


def _inside(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, nn.Sequential | nn.ModuleDict):
        inner = [child for child in module.children() if any(child.children())]
        if inner:
            return inner
    return [module] if any(module.children()) else []


def enable(found: list[nn.Module]) -> None:
    """Compute the activations of these blocks again in the backward pass, in all phases that train them."""
    for block in found:
        # Patched on the instance: its class, its path and the keys of the state dict stay torchvision's.
        block.forward = partial(_forward, block)


def is_enabled(module: nn.Module) -> bool:
    """Whether the activations of this module are computed again in the present phase."""
    patched = getattr(module.forward, "func", None) is _forward
    return patched and any(parameter.requires_grad for parameter in module.parameters())


def _forward(block: nn.Module, x: Tensor | list[Tensor]) -> Tensor:
    """A block's own forward pass; DenseNet's layers take a list."""
    own = partial(type(block).forward, block)
    if not (torch.is_grad_enabled() and is_enabled(block)):
        return own(x)
    if isinstance(x, list):
        x = list(x)  # DenseNet appends to its own later
    if (x[0] if isinstance(x, list) else x).is_meta:
        return own(x)  # nothing is kept there, and the estimate of memory sees the block's activations
    return checkpoint(own, x, use_reentrant=False, context_fn=partial(_contexts, block))


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What surrounds the first and the second forward pass."""
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """BatchNorm in training mode normalises by its batch's statistics as ever, and keeps its own."""
    updating = [m for m in block.modules() if m.training and getattr(m, "track_running_stats", False)]
    momenta = [module.momentum for module in updating]
    for module in updating:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in zip(updating, momenta, strict=True):
            module.momentum = momentum
            module.num_batches_tracked -= 1
