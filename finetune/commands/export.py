"""`export`: the model in forms that need nothing of this project."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from finetune.commands import must_be_new, parse
from finetune.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.artifact import Model

CHECKED_ON = 8  # images


@dataclass(frozen=True)
class Options:
    """Write the model as a file that needs nothing of this project, and check it against the model on real images."""

    run: tyro.conf.Positional[Path]
    """A run's folder, or a model folder."""
    format: Literal["state-dict", "torch-export", "onnx"]
    """state-dict: weights for torchvision's own model, .pth. torch-export: a program for torch.export.load, .pt2. onnx:
    for any ONNX runtime; pip install onnx onnxscript onnxruntime."""
    output: Path | None = None
    """The new file. None: export/model.pth, .pt2 or .onnx in the run's folder. A .json with the classes and the
    preprocessing is written beside it; .pt2 and .onnx also hold them inside."""
    half: bool = False
    """Weights in float16: half the size. Images and logits stay float32."""
    opset: int = 18
    """ONNX operator set."""
    images: Path | None = None
    """A folder of images, or one, to check the export on. None: validation images of the run, or, where they are gone,
    drawn ones."""


def main(arguments: list[str]) -> int:
    """Write the file and say how far it is from the model; the exit code."""
    options = parse(Options, "export", arguments)

    from finetune import artifact, export

    folder = artifact.find(options.run)
    needed = ("onnx", "onnxscript", "onnxruntime") if options.format == "onnx" else ()
    if any(importlib.util.find_spec(name) is None for name in needed):
        raise UserError("--format onnx needs packages that are not here: pip install onnx onnxscript onnxruntime")
    home = folder.parent if folder.name == "model" else folder
    path = options.output or home / "export" / f"model{export.SUFFIXES[options.format]}"
    if options.output is None and not path.parent.exists():
        new_folder = path.parent
    else:
        new_folder = None
        must_be_new("--output", path)
        must_be_new("--output", path.with_name(f"{path.name}.json"))
    opened = artifact.load(folder)
    images, where = pictures(opened, home, options.images)
    if new_folder:
        new_folder.mkdir()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters' own, about their insides
            difference = export.write(opened, options.format, path, images, options.half, options.opset)
    except BaseException:
        if new_folder:
            new_folder.rmdir()
        raise
    unit = "probability" if options.half else "logit"
    size = path.stat().st_size / 2**20
    also = f", opset {options.opset}" if options.format == "onnx" else ""
    print(f"{path} ({size:.1f} MiB{also}), and beside it {path.name}.json")
    print(f"Largest difference from the model in a {unit}: {difference:.1e}, on {len(images)} {where}.")
    return 0


def pictures(opened: Model, home: Path, given: Path | None) -> tuple[Tensor, str]:
    """Normalised inputs (N, C, H, W) from a few images, and what images they are."""
    import torch

    from finetune import api, imagesets, recipes, runs
    from finetune.commands.predict import find
    from finetune.starter import images as starter

    channels, transform = opened.net.in_channels, api.transform_of(opened.preprocess)
    if given:
        return transform(find([str(given)])[:CHECKED_ON]), "images"
    if (home / "config.json").is_file():
        try:
            recipe = recipes.from_config(runs.read_json(home / "config.json"))
            items = imagesets.read(recipe.images, channels, recipe.run.seed).splits["val"].items
            step = max(1, len(items) // CHECKED_ON)
            return transform([items[k] for k in range(0, len(items), step)][:CHECKED_ON]), "validation images"
        except UserError:
            pass  # the images are gone, which is no reason not to export
    if channels in (1, 3):
        return transform([starter.draw(species, 0) for species in range(CHECKED_ON)]), "drawn images"
    side = opened.preprocess.crop
    return torch.randn(CHECKED_ON, channels, side, side, generator=torch.Generator().manual_seed(0)), "images of noise"
