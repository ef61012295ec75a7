"""Export a model as a file that works without this project, and compare the file with the model.

A format is a module with two functions. `write(opened, form, path, about, calibration)` writes the file, with the
metadata `about` inside where the format has a place for it. `read(opened, path)` opens it as a function from normalised
images (N, C, H, W) to logits (N, classes). Both import the format's packages, which are in `export_forms.PACKAGES`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from finetune.inference.export_forms import Form, describe, write_about
from finetune.inference.exports import executorch, onnx, openvino, state_dict, torch_export
from finetune.models.model_folder import Model

FORMATS = {
    "state-dict": state_dict,
    "torch-export": torch_export,
    "onnx": onnx,
    "openvino": openvino,
    "executorch": executorch,
}
Result = TypeVar("Result")


def write(
    opened: Model,
    form: Form,
    path: Path,
    check: Callable[[Callable[[Tensor], Tensor]], Result],
    calibration: Tensor | None = None,
) -> Result:
    """Export the model to `path`, and its metadata to `path`.json; the result of `check` on the file, read back.

    `calibration` holds the images for int8, normalised, (N, C, H, W). Raises `UserError`, and leaves no file, where
    `check` does or the format does not take the architecture.
    """
    torch.manual_seed(0)
    about = describe(opened, form)
    if calibration is not None:
        about["calibrated_on"] = len(calibration)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as temporary:
        file = Path(temporary) / path.name
        FORMATS[form.format].write(opened, form, file, about, calibration)
        result = check(read(opened, form, file))
        write_about(file, about)
        for written in sorted(Path(temporary).iterdir()):
            written.rename(path.parent / written.name)
    return result


def read(opened: Model, form: Form, path: Path) -> Callable[[Tensor], Tensor]:
    """Open an exported file: normalised images (N, C, H, W) → logits (N, classes)."""
    return FORMATS[form.format].read(opened, path)
