"""`bench`: speed and accuracy of a model in each exported form."""

from __future__ import annotations

import json
import platform
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from finetune.commands import BatchSize, ModelArgument, WeightsOption
from finetune.commands.compare import show
from finetune.commands.export import default_path, int8_examples
from finetune.config.command_line import parse
from finetune.config.settings import Bounds
from finetune.errors import UserError
from finetune.inference.export_forms import Form, files_of

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.inference.examples import Examples
    from finetune.inference.exports.comparison import Agreement
    from finetune.inference.predictor import Predictor
    from finetune.inference.speed import Timing
    from finetune.models.model_folder import Model

MODEL = "model"  # the name of the model as `predict` runs it
FORMS = {
    "torch-export": Form("torch-export"),
    "onnx": Form("onnx"),
    "onnx-int8": Form("onnx", "int8"),
    "openvino": Form("openvino"),
    "executorch": Form("executorch"),
}
CALIBRATED_ON = 64  # images
LACKING = "Speed only: the run's validation images cannot be read. --images FOLDER names others."


class Opened(NamedTuple):
    """A form that is ready to run."""

    function: Callable[[Tensor], Tensor]
    """Normalised images (N, C, H, W) → logits (N, classes)."""
    size: int
    """Bytes of its file or files; of the weights for the model itself."""


@dataclass(frozen=True)
class Options:
    """Measure a model in each exported form on this machine: milliseconds per image, accuracy, size.

    The forms take turns, so that other load slows all alike; a time is the median over the turns, with the quartiles in
    brackets. Accuracy is that on the run's validation images, at most 1,000.
    """

    run: ModelArgument
    weights: WeightsOption = "default"
    formats: tuple[Literal["torch-export", "onnx", "onnx-int8", "openvino", "executorch"], ...] = tuple(FORMS)
    """Forms beside the model itself, which is measured as `predict` runs it. A form whose packages are not installed is
    named, with how to install them. One that export/ in the run's folder holds is not exported again."""
    batch_sizes: tuple[BatchSize, ...] = (1, 16)
    """Images per call."""
    turns: Annotated[int, Bounds(at_least=2, at_most=10_000)] = 20
    """How often each form is timed; of about a tenth of a second each."""
    images: Path | None = None
    """A folder of images to use where the run's are gone, as for `export`. With neither, there is no accuracy and no
    onnx-int8."""
    json: bool = False
    """One JSON object: the machine, and for each form size, accuracy and times."""


def main(arguments: list[str]) -> int:
    """Print the table."""
    options = parse(Options, "python -m finetune bench", arguments)
    if not options.batch_sizes:
        raise UserError("--batch-sizes: name one or more.")

    from finetune.inference.predictor import open_run
    from finetune.models import pretrained

    opened = pretrained.open_model(options.run, options.weights)
    predictor = open_run(options.run, "run", weights=options.weights)
    calibration, compared = examples_for(opened, options)
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporters warn about their own internals
        size = sum(tensor.numel() * tensor.element_size() for tensor in opened.model.state_dict().values())
        found, problems = open_forms(opened, options.formats, calibration, Path(temporary))
        forms = {MODEL: Opened(as_predict_runs_it(predictor), size), **found}
        agreements = compare(forms, compared)
        times = {size: time(forms, opened, size, options.turns) for size in options.batch_sizes}
    where, images = machine(predictor), f"{len(compared)} {compared.kind}" if compared else None
    if options.json:
        about = {"model": opened.net.model, "machine": where, "images": images}
        print(json.dumps({**about, "forms": as_json(forms, agreements, times), "not_measured": problems}))
        return 0
    print(f"{opened.net.model} on {where}")
    show(table(forms, agreements, times), 0)
    print(f"Accuracy and equal predictions on {images}." if compared else LACKING)
    for name, problem in problems.items():
        print(f"{name} is not measured. {problem}")
    return 0


def examples_for(opened: Model, options: Options) -> tuple[Examples | None, Examples | None]:
    """Images to calibrate on and to compare on; None for both where there are none."""
    from finetune.inference import examples

    if options.images is None and examples.of_run(opened) is None:
        return None, None
    return int8_examples(opened, options.images, CALIBRATED_ON)


def as_predict_runs_it(predictor: Predictor) -> Callable[[Tensor], Tensor]:
    """Normalised images (N, C, H, W) on the CPU → logits (N, classes) on the CPU, in the run's precision and layout."""
    import torch

    device, layout = predictor.accelerator.device, torch.contiguous_format
    if predictor.recipe.run.channels_last:
        layout = torch.channels_last

    @torch.inference_mode()
    def run(x: Tensor) -> Tensor:
        with predictor.accelerator.autocast():
            return predictor.model(x.to(device, memory_format=layout)).float().cpu()

    return run


def open_forms(
    opened: Model, names: Sequence[str], calibration: Examples | None, temporary: Path
) -> tuple[dict[str, Opened], dict[str, str]]:
    """The forms that can be measured, and why others cannot be. What export/ does not hold is made in `temporary`."""
    from finetune.inference import exports

    found, problems = {}, {}
    for name in names:
        form = FORMS[name]
        if command := form.missing():
            problems[name] = f"Its packages are not installed: {command}"
            continue
        if form.precision == "int8" and calibration is None:
            problems[name] = "It is calibrated on images: name some with --images FOLDER."
            continue
        path = default_path(opened, form)
        try:
            if is_current(path, form, opened):
                function = exports.read(opened, form, path)
            else:
                path = temporary / name / form.file_name
                path.parent.mkdir()
                images = calibration.tensor(len(calibration)) if form.precision == "int8" else None
                function = exports.write(opened, form, path, lambda exported: exported, images)
        except UserError as error:
            problems[name] = str(error)
            continue
        found[name] = Opened(function, sum(file.stat().st_size for file in files_of(path)[:-1]))
    return found, problems


def is_current(path: Path, form: Form, opened: Model) -> bool:
    """Whether an exported file is of that precision and not older than the model's weights."""
    from finetune.models.model_folder import WEIGHTS

    files = files_of(path)
    if opened.folder is None or not all(file.is_file() for file in files):
        return False
    newer = path.stat().st_mtime >= (opened.folder / WEIGHTS).stat().st_mtime
    return newer and json.loads(files[-1].read_text()).get("precision") == form.precision


def compare(forms: dict[str, Opened], compared: Examples | None) -> dict[str, Agreement]:
    """How each form agrees with the model; empty without images."""
    from finetune.inference.exports.comparison import agreement

    if compared is None:
        return {}
    return {name: agreement(forms[MODEL].function, form.function, compared) for name, form in forms.items()}


def time(forms: dict[str, Opened], opened: Model, batch_size: int, turns: int) -> dict[str, Timing]:
    """The times of each form for one batch of noise: what an image shows does not change them."""
    import torch

    from finetune.inference import speed

    side = opened.preprocess.crop
    x = torch.randn(batch_size, opened.net.in_channels, side, side)
    return speed.in_turns({name: partial(form.function, x) for name, form in forms.items()}, batch_size, turns)


def machine(predictor: Predictor) -> str:
    """The machine in words: processor, threads, the model's device and precision."""
    import torch

    device, mixed = predictor.accelerator.device, predictor.accelerator.mixed_precision
    where = "" if device.type == "cpu" else f", the model on {torch.cuda.get_device_name(device)}"
    precision = "float32" if mixed == "no" else mixed
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' * (threads > 1)}{where}, the model in {precision}"


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.M) if info.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def table(
    forms: dict[str, Opened], agreements: dict[str, Agreement], times: dict[int, dict[str, Timing]]
) -> list[list[str]]:
    """The table's cells, its header first."""
    header = ["form", "MiB", *(["accuracy", "equal"] if agreements else [])]
    for size in times:
        header += [f"ms/image, batch {size}", "images/s"]
    rows = [header]
    for name, form in forms.items():
        row = [name, f"{form.size / 2**20:.1f}"]
        if agreements:
            found = agreements[name]
            row += ["" if found.accuracy is None else f"{found.accuracy:.4f}", f"{found.equal:.1%}"]
        for by_form in times.values():
            timing = by_form[name]
            row += [f"{timing.median:.2f} ({timing.low:.2f}–{timing.high:.2f})", f"{timing.images_per_second:.0f}"]
        rows.append(row)
    filled = [k for k in range(len(header)) if any(row[k] for row in rows[1:])]
    return [[row[k] for k in filled] for row in rows]


def as_json(
    forms: dict[str, Opened], agreements: dict[str, Agreement], times: dict[int, dict[str, Timing]]
) -> dict[str, Any]:
    """The same as numbers."""
    return {
        name: {
            "bytes": form.size,
            **(asdict(agreements[name]) if agreements else {}),
            "milliseconds_per_image": {size: asdict(by_form[name]) for size, by_form in times.items()},
        }
        for name, form in forms.items()
    }
