"""A program for `torch.export.load`, which needs torch alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.inference.export_forms import Form
from finetune.inference.exports import tracing
from finetune.models.model_folder import Model


def write(opened: Model, form: Form, path: Path, about: dict[str, Any], calibration: Tensor | None) -> None:
    """Write the .pt2 file, with its metadata inside as `model.json`."""
    traced = tracing.program(opened, form.precision == "float16")
    torch.export.save(traced, path, extra_files={"model.json": json.dumps(about)})


def read(opened: Model, path: Path) -> Callable[[Tensor], Tensor]:
    """Normalised images (N, C, H, W) → logits (N, classes)."""
    return torch.no_grad()(torch.export.load(path).module())
