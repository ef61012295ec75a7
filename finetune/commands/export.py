"""`export`: the model as a file that works without this project."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from finetune.commands import ModelArgument, WeightsOption, new_file
from finetune.config.command_line import parse
from finetune.config.settings import Bounds, NonNegativeFloat, PositiveInt
from finetune.errors import UserError
from finetune.inference.export_forms import OPSET, OPSETS_OF_INT8, Form, files_of

if TYPE_CHECKING:
    from finetune.inference.examples import Examples
    from finetune.models.model_folder import Model

CHECKED_ON = 8  # images on which logits are compared


@dataclass(frozen=True)
class Options:
    """Export the model as a file that works without this project, and compare it with the model on images."""

    run: ModelArgument
    format: Literal["state-dict", "torch-export", "onnx", "openvino", "executorch"]
    """state-dict: weights for torchvision's own model, .pth. torch-export: a program for torch.export.load, .pt2. onnx:
    for any ONNX runtime; pip install onnx onnxscript onnxruntime. openvino: .xml and .bin; pip install openvino.
    executorch: for phones and other devices, .pte; pip install executorch."""
    weights: WeightsOption = "default"
    output: Path | None = None
    """The new file. None: export/model.pth, .pt2, … in the run's folder, with --int8 export/model-int8.onnx; of a
    torchvision model, its name in this folder. The classes and the preprocessing are written to a .json next to it;
    .pt2, .onnx and .xml also hold them."""
    half: bool = False
    """Weights in float16, half the size. Images and logits stay float32."""
    int8: bool = False
    """Weights and activations in int8, a quarter of the size; for --format onnx. Ranges of activations are measured on
    training images."""
    calibration_images: PositiveInt = 64
    """Training images that --int8 measures on, as many of each class."""
    tolerance: NonNegativeFloat = 2.0
    """Points of validation accuracy that --int8 may lose; without labels, points of changed predictions."""
    opset: Annotated[int, Bounds(at_least=1, at_most=99)] = OPSET
    """ONNX operator set."""
    images: Path | None = None
    """An image or a folder of images for the comparison; for --int8 one part calibrates and another is compared, and
    folders with the classes' names are labels. None: the run's images, or built-in images where those cannot be read
    (not for --int8)."""


def main(arguments: list[str]) -> int:
    """Write the file, and print how it compares with the model."""
    options = parse(Options, "python -m finetune export", arguments)
    form = form_of(options)

    from finetune.inference import exports
    from finetune.inference.exports import comparison
    from finetune.models import pretrained

    opened = pretrained.open_model(options.run, options.weights)
    form.check_installed()
    path = options.output or default_path(opened, form)
    new_folder = path.parent if options.output is None and not path.parent.exists() else None
    if new_folder is None:
        path = new_file("--output", path)
        for written in files_of(path)[1:]:
            new_file("--output", written)
    if form.precision == "int8":
        calibration, compared = int8_examples(opened, options.images, options.calibration_images)
        check = comparison.same_accuracy(opened, compared, options.tolerance)
        images = calibration.tensor(len(calibration))
    else:
        compared, images = example_images(opened, options.images), None
        check = comparison.same_logits(opened, form, compared.tensor(CHECKED_ON))
    if new_folder:
        new_folder.mkdir()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporters warn about their own internals
            result = exports.write(opened, form, path, check, images)
    except BaseException:
        if new_folder:
            new_folder.rmdir()
        raise
    size = sum(file.stat().st_size for file in files_of(path)[:-1]) / 2**20
    opset = f", opset {form.opset}" if form.format == "onnx" else ""
    print(f"{path} ({size:.1f} MiB{opset}), metadata in {path.name}.json")
    if form.precision == "int8":
        print(f"Calibrated on {len(calibration)} {calibration.kind}. On {len(compared)} {compared.kind}: {result}.")
    else:
        unit = "probability" if options.half else "logit"
        print(f"Largest difference from the model in a {unit}: {result:.1e}, on {len(compared)} {compared.kind}.")
    return 0


def form_of(options: Options) -> Form:
    """The file's form. Raises `UserError` for options that do not go together."""
    if options.int8 and options.half:
        raise UserError("--int8 or --half: choose one.")
    if options.int8 and options.format != "onnx":
        raise UserError(f"--int8 is for --format onnx, not {options.format}.")
    if options.half and options.format == "executorch":
        raise UserError("--half is for the other formats, not executorch.")
    if options.int8 and options.opset < OPSETS_OF_INT8:
        raise UserError(f"--opset {options.opset}: --int8 needs {OPSETS_OF_INT8} or more, for a scale per channel.")
    if options.format == "openvino" and options.output and options.output.suffix != ".xml":
        raise UserError(f"--output {options.output}: name an .xml file. The weights go into a .bin file beside it.")
    precision = "int8" if options.int8 else "float16" if options.half else "float32"
    return Form(options.format, precision, options.opset)


def default_path(opened: Model, form: Form) -> Path:
    """export/ in the run's folder or model folder; for a torchvision model a file with its name in this folder."""
    if opened.folder is None:
        return Path(form.file_name.replace("model", opened.net.model, 1))
    home = opened.folder.parent if opened.folder.name == "model" else opened.folder
    return home / "export" / form.file_name


def example_images(opened: Model, images: Path | None) -> Examples:
    """At most `CHECKED_ON` images: those given, else the run's validation images, else built-in ones."""
    from finetune.commands.predict import find
    from finetune.inference import examples

    if images:
        return examples.of_files(opened, find([str(images)])[:CHECKED_ON])
    of_run = examples.of_run(opened)
    if of_run is None:
        return examples.built_in(opened, CHECKED_ON)
    return of_run["val"].spread(CHECKED_ON)


def int8_examples(opened: Model, images: Path | None, count: int) -> tuple[Examples, Examples]:
    """Images to calibrate on, and others to compare on, at most `examples.MOST`.

    Raises `UserError` where the run's images are gone and no others are given.
    """
    from finetune.commands.predict import find
    from finetune.inference import examples

    if images:
        given = examples.of_files(opened, find([str(images)]))
        if len(given) < 2:
            raise UserError(f"--images {images}: --int8 needs two or more, to calibrate on and to compare on.")
        return given.divided(count)
    of_run = examples.of_run(opened)
    if of_run is None:
        raise UserError(
            "--int8 is calibrated on training images, and the run's cannot be read. Name some: --images FOLDER"
        )
    return of_run["train"].stratified(count), of_run["val"].spread(examples.MOST)
