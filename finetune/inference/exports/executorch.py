"""ExecuTorch's .pte, for phones and other devices, with XNNPACK for their CPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.errors import UserError
from finetune.inference.export_forms import LARGEST_BATCH, Form
from finetune.inference.exports import tracing
from finetune.models.model_folder import Model


def _split_with_sizes(x: Tensor, sizes: Sequence[int], dim: int = 0) -> list[Tensor]:
    ends = [*accumulate(sizes)]
    return [torch.ops.aten.slice.Tensor(x, dim, end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _split(x: Tensor, size: int, dim: int = 0) -> list[Tensor]:
    whole = x.shape[dim]
    return _split_with_sizes(x, [min(size, whole - first) for first in range(0, whole, size)], dim)


# ExecuTorch writes a split as split_with_sizes_copy, which fixes the batch at that of the trace; slices leave it free.
SPLITS = {torch.ops.aten.split.Tensor: _split, torch.ops.aten.split_with_sizes.default: _split_with_sizes}


def write(opened: Model, form: Form, path: Path, about: dict[str, Any], calibration: Tensor | None) -> None:
    """Write the .pte file, for batches of at most `LARGEST_BATCH` images: its memory is planned ahead."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    traced = tracing.program(opened, largest_batch=LARGEST_BATCH)
    try:
        traced = traced.run_decompositions(SPLITS)
        lowered = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()]).to_executorch()
    except Exception as error:
        raise UserError(f"{opened.net.model} cannot be written for ExecuTorch: {tracing.first_line(error)}") from error
    held = Runtime.get().load_program(lowered.buffer)
    planned = held.load_method("forward").metadata.input_tensor_meta(0).sizes()[0]
    if planned != LARGEST_BATCH:
        raise UserError(
            f"{opened.net.model} cannot be written for ExecuTorch, which would take {planned} images at a time and no "
            f"other number. Try another --format."
        )
    path.write_bytes(lowered.buffer)


def read(opened: Model, path: Path) -> Callable[[Tensor], Tensor]:
    """Normalised images (N, C, H, W) → logits (N, classes), on all cores."""
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path.read_bytes())
    held = program, program.load_method("forward")  # a method is invalid once its program is freed

    def run(x: Tensor) -> Tensor:
        _, method = held
        return torch.cat([method.execute([part])[0] for part in x.contiguous().split(LARGEST_BATCH)])

    return run
