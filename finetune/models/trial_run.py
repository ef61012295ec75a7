"""Run a network on the meta device, where tensors have shapes but no values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from finetune.errors import UserError


def tensors(model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The model's parameters and buffers on the meta device, those with floating points as `dtype`."""
    return {
        name: torch.empty_like(
            tensor, device="meta", dtype=dtype if tensor.is_floating_point() else None
        ).requires_grad_(tensor.requires_grad)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }


def outputs(model: nn.Module, held: dict[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """The model's output, with the `tensors` held, on images of this shape (N, C, H, W).

    Raises `UserError` where the network does not take such images.
    """
    images = torch.empty(shape, device="meta", dtype=dtype)
    try:
        with _BatchNormOfShapes():
            return functional_call(model, held, (images,))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"--image-size {shape[-1]}: this network does not take it ({str(error).splitlines()[0]})."
        ) from error


class _BatchNormOfShapes(TorchFunctionMode):
    """BatchNorm by its shapes alone: torch's own takes most of the time, as it is written in Python for this device."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        x = args[0]  # (N, C, …)
        if kwargs["training"] and x.numel() == x.shape[1]:
            raise ValueError(f"BatchNorm in training needs more than one value per channel, but has {tuple(x.shape)}")
        return _SameShape.apply(x, kwargs["weight"], kwargs["bias"])


class _SameShape(torch.autograd.Function):
    """A tensor like the input; saves for the backward pass what BatchNorm does, but for a few numbers per channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        raise AssertionError("a trial run has no backward pass")
