"""Forms of exported files: format and precision, file names, packages, metadata. Nothing here imports torch."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune.errors import UserError

if TYPE_CHECKING:
    from finetune.models.model_folder import Model

# Of ExecuTorch, which plans its memory ahead. Lowering bounds it at 15, where torch's choice of convolution changes.
LARGEST_BATCH = 8
OPSET = 18  # ONNX operator set
OPSETS_OF_INT8 = 13  # the first with a scale per channel
# Each format's suffix, the packages that it needs beside torch, and the extra of pyproject.toml that installs them.
SUFFIXES = {
    "state-dict": ".pth", "torch-export": ".pt2", "onnx": ".onnx", "openvino": ".xml", "executorch": ".pte",
}  # fmt: skip
PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "executorch": ("executorch",),
}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """A format and a precision."""

    format: str
    """A key of `SUFFIXES`."""
    precision: Literal["float32", "float16", "int8"] = "float32"
    """Of the weights; with int8 also of what is computed between them. Images and logits are float32."""
    opset: int = OPSET
    """ONNX operator set."""

    @property
    def file_name(self) -> str:
        """The file's default name."""
        return f"model{'-int8' * (self.precision == 'int8')}{SUFFIXES[self.format]}"

    def missing(self) -> str:
        """How to install the packages that the format needs; empty where all are there."""
        needed = PACKAGES.get(self.format, ())
        if all(importlib.util.find_spec(name) for name in needed):
            return ""
        return f"pip install {' '.join(needed)}"

    def check_installed(self) -> None:
        """Raise `UserError` where a package is missing."""
        if command := self.missing():
            raise UserError(f"--format {self.format} needs packages that are not installed: {command}")


def describe(opened: Model, form: Form) -> dict[str, Any]:
    """The exported file's metadata: input, output, classes, preprocessing, score."""
    channels, side = len(opened.preprocess.mean), opened.preprocess.crop
    batch = f"N from 1 to {LARGEST_BATCH}" if form.format == "executorch" else "any N"
    return {
        "model": opened.net.model,
        "format": form.format,
        **({"opset": form.opset} if form.format == "onnx" else {}),
        "precision": form.precision,
        "input": f"images: float32 (N, {channels}, {side}, {side}), {batch}; pixels in [0, 1]"
        f"{', red green blue' if channels == 3 else ''}, then normalised with mean and std",
        "output": "logits: float32 (N, classes); softmax makes them probabilities",
        "classes": opened.classes,
        "preprocess": asdict(opened.preprocess),
        "score": opened.metadata.score,
    }


def files_of(path: Path) -> list[Path]:
    """The files of an export: itself, its weights where they are a file of their own, and last its metadata."""
    weights = [path.with_suffix(".bin")] if path.suffix == SUFFIXES["openvino"] else []
    return [path, *weights, path.with_name(f"{path.name}.json")]


def write_about(path: Path, about: dict[str, Any]) -> None:
    """Write the metadata of an exported file next to it."""
    files_of(path)[-1].write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n")
