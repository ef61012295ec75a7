"""ExecuTorch's .pte, for phones and other devices, with XNNPACK for their CPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.errors import UserError
from finetune.inference.export_forms import LARGEST_BATCH, Form
from finetune.inference.exports import tracing
from finetune.models.model_folder import Model


def write(opened: Model, form: Form, path: Path, about: dict[str, Any], calibration: Tensor | None) -> None:
    """Write the .pte file, for batches of at most `LARGEST_BATCH` images: its memory is planned ahead."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    traced = tracing.program(opened, largest_batch=LARGEST_BATCH)
    try:
        lowered = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()]).to_executorch()
    except Exception as error:
        raise UserError(f"{opened.net.model} cannot be written for ExecuTorch: {tracing.first_line(error)}") from error
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
