"""ONNX, for any ONNX runtime; with int8 weights and activations where they are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.errors import UserError
from finetune.inference.export_forms import Form
from finetune.inference.exports import quantization, tracing
from finetune.models.model_folder import Model

ONE_FILE = 1_900_000_000  # bytes of weights inside the .onnx file; larger weights are a second file


def write(opened: Model, form: Form, path: Path, about: dict[str, Any], calibration: Tensor | None) -> None:
    """Write the .onnx file, with classes and metadata inside. int8 is calibrated on images (N, C, H, W), normalised."""
    import onnx

    traced = tracing.program(opened, form.precision == "float16")
    size = sum(tensor.numel() * tensor.element_size() for tensor in opened.model.state_dict().values())
    if form.precision == "int8" and size > ONE_FILE:
        raise UserError(
            f"{opened.net.model} is too large for --int8: its weights do not fit one .onnx file. Use --half."
        )
    try:
        with redirect_stdout(StringIO()):  # the exporter's own progress
            written = torch.onnx.export(
                traced, dynamo=True, opset_version=form.opset, input_names=["images"], output_names=["logits"],
                verbose=False,
            )  # fmt: skip
        written.save(path, external_data=size > ONE_FILE)
    except Exception as error:
        raise UserError(f"{opened.net.model} cannot be written as ONNX: {tracing.first_line(error)}") from error
    if form.precision == "int8":
        quantization.quantize(path, calibration)
    proto = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(proto, {"classes": json.dumps(about["classes"]), "about": json.dumps(about)})
    onnx.save(proto, path)


def read(opened: Model, path: Path) -> Callable[[Tensor], Tensor]:
    """Normalised images (N, C, H, W) → logits (N, classes), by onnxruntime on as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.contiguous().numpy()})[0])
