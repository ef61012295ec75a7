"""Trace a model as a torch.export program, which the other formats are made from."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from finetune.errors import UserError
from finetune.models.model_folder import Model


class Half(nn.Module):
    """A network that computes in float16, from float32 to float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).half()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.half()).float()


def program(opened: Model, half: bool = False, largest_batch: int | None = None) -> torch.export.ExportedProgram:
    """The model as a program for batches of any size, or of at most `largest_batch` images.

    Raises `UserError`, which names the innermost module at fault, where it cannot be traced.
    """
    model = Half(opened.model) if half else opened.model
    side, generator = opened.preprocess.crop, torch.Generator().manual_seed(0)
    pair = (torch.randn(2, opened.net.in_channels, side, side, generator=generator),)
    try:
        return _trace(model, pair, largest_batch)
    except Exception as error:
        part = culprit(model, pair)
        where = f" because of its module {part}" if part else ""
        raise UserError(f"{opened.net.model} cannot be exported{where}: {first_line(error)}") from error


def _trace(
    model: nn.Module, inputs: tuple[Tensor, ...], largest_batch: int | None = None
) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=largest_batch) if largest_batch else torch.export.Dim("batch")
    with torch.no_grad():
        return torch.export.export(model, inputs, dynamic_shapes=({0: batch},))


def culprit(model: nn.Module, inputs: tuple[Tensor, ...], above: str = "") -> str:
    """The path and type of the innermost module that cannot be exported alone; empty where each can."""
    seen: dict[str, tuple[Tensor, ...]] = {}
    hooks = [
        child.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, args))
        for name, child in model.named_children()
    ]
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    for name, args in seen.items():
        child, path = model.get_submodule(name), f"{above}.{name}".lstrip(".")
        if len(args) != 1 or not isinstance(args[0], Tensor):
            continue
        try:
            _trace(child, args)
        except Exception:
            return culprit(child, args, path) or f"{path} ({type(child).__name__})"
    return ""


def first_line(error: Exception) -> str:
    """The first line of an error's message that is not empty; its type where there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
