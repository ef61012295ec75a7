"""`export`: the model as a file that works without this project."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finetune.commands import RunArgument, new_file
from finetune.config.command_line import parse
from finetune.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.models.model_folder import Model

CHECKED_ON = 8  # images on which the file is compared with the model


@dataclass(frozen=True)
class Options:
    """Export the model as a file that works without this project, and compare it with the model on images."""

    run: RunArgument
    """A run's folder, a model folder, or the name of a torchvision model, as it was pretrained on ImageNet."""
    format: Literal["state-dict", "torch-export", "onnx"]
    """state-dict: weights for torchvision's own model, .pth. torch-export: a program for torch.export.load, .pt2. onnx:
    for any ONNX runtime; pip install onnx onnxscript onnxruntime."""
    weights: str = "default"
    """Of a torchvision model by name: default, torchvision's, downloaded once; or a .safetensors or .pth file."""
    output: Path | None = None
    """The new file. None: export/model.pth, .pt2 or .onnx in the run's folder; of a torchvision model, its name in this
    folder. The classes and the preprocessing are
    written to a .json next to it; .pt2 and .onnx also hold them."""
    half: bool = False
    """Weights in float16, half the size. Images and logits stay float32."""
    opset: int = 18
    """ONNX operator set."""
    images: Path | None = None
    """An image or a folder of images for the comparison. None: the run's validation images, or built-in images where
    those cannot be read."""


def main(arguments: list[str]) -> int:
    """Write the file, and print its largest difference from the model."""
    options = parse(Options, "python -m finetune export", arguments)

    from finetune.inference import export
    from finetune.models import pretrained

    needed = ("onnx", "onnxscript", "onnxruntime") if options.format == "onnx" else ()
    if any(importlib.util.find_spec(name) is None for name in needed):
        raise UserError("--format onnx needs packages that are not installed: pip install onnx onnxscript onnxruntime")
    opened = pretrained.open_model(options.run, options.weights)
    folder, suffix = opened.folder, export.SUFFIXES[options.format]
    home = Path() if folder is None else folder.parent if folder.name == "model" else folder
    default = home / "export" / f"model{suffix}" if folder else Path(f"{opened.net.model}{suffix}")
    path = options.output or default
    new_folder = path.parent if options.output is None and not path.parent.exists() else None
    if new_folder is None:
        path = new_file("--output", path)
        new_file("--output", path.with_name(f"{path.name}.json"))
    images, source = example_images(opened, home, options.images)
    if new_folder:
        new_folder.mkdir()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporters warn about their own internals
            difference = export.write(opened, options.format, path, images, options.half, options.opset)
    except BaseException:
        if new_folder:
            new_folder.rmdir()
        raise
    unit = "probability" if options.half else "logit"
    size = path.stat().st_size / 2**20
    opset = f", opset {options.opset}" if options.format == "onnx" else ""
    print(f"{path} ({size:.1f} MiB{opset}), metadata in {path.name}.json")
    print(f"Largest difference from the model in a {unit}: {difference:.1e}, on {len(images)} {source}.")
    return 0


def example_images(opened: Model, home: Path, folder: Path | None) -> tuple[Tensor, str]:
    """Normalised inputs (N, C, H, W) from at most `CHECKED_ON` images, and the kind of images."""
    import torch

    from finetune import recipes
    from finetune.commands.predict import find
    from finetune.data import readers
    from finetune.inference.transform import make_transform
    from finetune.reporting import run_folder
    from finetune.starter import images as starter

    channels, transform = opened.net.in_channels, make_transform(opened.preprocess)
    if folder:
        return transform(find([str(folder)])[:CHECKED_ON]), "images"
    if (home / run_folder.CONFIG).is_file():
        try:
            recipe = recipes.from_config(run_folder.read_json(home / run_folder.CONFIG))
            items = readers.read(recipe.images, channels, recipe.run.seed).splits["val"].items
            step = max(1, len(items) // CHECKED_ON)
            return transform([items[k] for k in range(0, len(items), step)][:CHECKED_ON]), "validation images"
        except UserError:
            pass  # the images are gone: others will do
    if channels in (1, 3):
        return transform([starter.draw(species, 0) for species in range(CHECKED_ON)]), "built-in images"
    side = opened.preprocess.crop
    return torch.randn(CHECKED_ON, channels, side, side, generator=torch.Generator().manual_seed(0)), "noise images"
