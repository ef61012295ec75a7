"""OpenVINO's .xml and .bin, for Intel's processors and others that it supports."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.errors import UserError
from finetune.inference.export_forms import Form
from finetune.inference.exports import tracing
from finetune.models.model_folder import Model


def write(opened: Model, form: Form, path: Path, about: dict[str, Any], calibration: Tensor | None) -> None:
    """Write the .xml file, which holds the metadata too, and the weights in a .bin file of the same name.

    float16 is how the weights are stored; the runtime computes as its device does.
    """
    openvino = _openvino()
    traced = tracing.program(opened)
    try:
        model = openvino.convert_model(traced)
    except Exception as error:
        raise UserError(f"{opened.net.model} cannot be written for OpenVINO: {tracing.first_line(error)}") from error
    model.inputs[0].get_tensor().set_names({"images"})
    model.outputs[0].get_tensor().set_names({"logits"})
    model.set_rt_info(json.dumps(about["classes"]), ["model_info", "classes"])
    model.set_rt_info(json.dumps(about), ["model_info", "about"])
    openvino.save_model(model, path, compress_to_fp16=form.precision == "float16")


def read(opened: Model, path: Path) -> Callable[[Tensor], Tensor]:
    """Normalised images (N, C, H, W) → logits (N, classes), computed in float32 on as many threads as torch has."""
    openvino = _openvino()
    # Without the hint, processors with bfloat16 compute in it.
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(path, "CPU", options)
    return lambda x: torch.from_numpy(compiled(x.contiguous().numpy())[0].copy())


def _openvino() -> Any:
    """The library without its telemetry, which reports each import and conversion to Google Analytics unasked.

    It uses a stub where the package `openvino_telemetry` cannot be imported, which None in `sys.modules` says.
    """
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino

    return openvino
