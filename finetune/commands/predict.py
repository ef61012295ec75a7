"""`predict`: classify images."""

from __future__ import annotations

import csv
import glob
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune.commands import BatchSize, ImagesArgument, ModelArgument, WeightsOption, empty_folder, new_file
from finetune.config.command_line import parse
from finetune.config.settings import PositiveInt, Probability, Workers
from finetune.data import image_files
from finetune.errors import UserError, printable

if TYPE_CHECKING:
    from finetune.inference.predictor import Prediction

GRID = 40  # images in --grid


@dataclass(frozen=True)
class Options:
    """Classify images with a run's model: one line per image, most probable classes first."""

    run: ModelArgument
    images: ImagesArgument
    """Image files, folders (with their subfolders), patterns such as 'photos/*.jpg', or - for a list on stdin."""
    weights: WeightsOption = "default"
    topk: PositiveInt = 5
    """Classes per image."""
    json: bool = False
    """One JSON object per line: path, class, probability, top; or path and error."""
    csv: bool = False
    """Comma-separated values with a header."""
    grid: Path | None = None
    """Also draw the first images with their predictions: a new .png file."""
    explain: Path | None = None
    """Also draw where the model looked: a picture per image, under the heat map of its first class, into a new or empty
    folder. --json and --csv name its path as explanation."""
    abstain: Probability = 0.0
    """Give no class to an image whose highest probability is below this. --json: class is null, and each row says
    whether it is abstained, as does a column of --csv. The probabilities stay. 0: always give one."""
    tta: bool = False
    """Test-time augmentation: the mean of an image's and its mirror image's probabilities."""
    batch_size: BatchSize = 16
    """Images per batch. Predictions of two batch sizes may differ in the last bit."""
    workers: Workers = -1
    """Worker processes that decode images. -1: none on a CPU, else up to 8."""
    precision: Literal["run", "auto", "no", "bf16", "fp16"] = "run"
    """run: as in training. Others: as for train.py."""


def main(arguments: list[str]) -> int:
    """Print the predictions as they are computed.

    The row of an image that does not decode says why. Raises `UserError` at the end where there was one.
    """
    options = parse(Options, "python -m finetune predict", arguments)
    if options.json and options.csv:
        raise UserError("--json or --csv: choose one.")
    if options.explain and options.tta:
        raise UserError("--explain shows what one view says, not two: leave out --tta.")
    grid, folder = new_file("--grid", options.grid), empty_folder("--explain", options.explain)
    paths = find(options.images)

    from rich.console import Console
    from rich.progress import track

    from finetune.inference.predictor import open_run, predict

    predictor = open_run(options.run, options.precision, options.tta, options.weights)
    explain = None
    if folder:
        from finetune.inference.heat_maps import HeatMaps

        heat_maps = HeatMaps(folder, predictor, paths)
        explain = heat_maps.write
        print(f"Heat maps of each image's first class, in {folder}: {heat_maps.explainer.method}", file=sys.stderr)
    bar = Console(stderr=True)
    hidden = not bar.is_terminal or sys.stdout.isatty()  # rows in the terminal show the progress
    predictions = predict(predictor, paths, options.topk, options.batch_size, options.workers)
    tracked = track(predictions, "images", len(paths), console=bar, transient=True, disable=hidden)
    first, bad, abstained = write(tracked, predictor.metadata.classes, options, explain)
    if options.abstain:
        count = f"{abstained} of {len(paths)} images"
        print(f"No class for {count}: their highest probability is below {options.abstain:g}.", file=sys.stderr)
    if grid:
        from finetune.reporting import image_grids

        image_grids.answers(grid, first, predictor.metadata.classes)
    if bad:
        raise UserError(f"{bad} of {len(paths)} images could not be read; their rows say why.")
    return 0


def find(words: Iterable[str]) -> list[str]:
    """The image files that paths and patterns name, in order. Raises `UserError` for one that names none."""
    paths: list[str] = []
    for word in words:
        if word == "-":
            paths += [line.strip() for line in sys.stdin if line.strip()]
        elif os.path.isdir(word):  # noqa: PTH112
            inside = image_files.below(word)
            if not inside:
                raise UserError(f"{word} holds no image. Images are: {' '.join(image_files.EXTENSIONS)}")
            paths += sorted(inside)
        elif not os.path.exists(word) and glob.has_magic(word):  # noqa: PTH110
            matching = sorted(glob.glob(word, recursive=True))  # noqa: PTH207
            if not matching:
                raise UserError(f"nothing matches {word}.")
            paths += find(matching)
        else:
            paths.append(word)
    if not paths:
        raise UserError("no images: name files, folders or patterns, or give - and a list on stdin.")
    return paths


def write(
    predictions: Iterable[Prediction],
    classes: list[str],
    options: Options,
    explain: Callable[[Prediction], Path] | None,
) -> tuple[list[Prediction], int, int]:
    """Print each prediction; `explain` draws its heat map.

    Returns the first ones, for the grid, and the numbers of images that do not decode and that get no class.
    """
    first, bad, abstained = [], 0, 0
    count = min(options.topk, len(classes))
    columns = [f"{name}_{k}" for k in range(1, count + 1) for name in ("class", "probability")]
    table = csv.writer(sys.stdout, lineterminator="\n") if options.csv else None
    if table:
        more = [*(["abstained"] if options.abstain else []), *(["explanation"] if explain else [])]
        table.writerow(["path", "error", *more, *columns])
    for prediction in predictions:
        bad += bool(prediction.error)
        if options.grid and len(first) < GRID and not prediction.error:
            first.append(prediction)
        top = [(classes[k] if options.json else printable(classes[k]), value) for k, value in prediction.top]
        unsure = bool(top) and top[0][1] < options.abstain
        abstained += unsure
        drawn = str(explain(prediction)) if explain and top else ""
        if table:
            more = [*([str(unsure).lower()] if options.abstain else []), *([drawn] if explain else [])]
            table.writerow([prediction.path, prediction.error, *more, *(value for pair in top for value in pair)])
        elif options.json:
            found = as_object(prediction, top)
            if options.abstain and top:
                found |= {"class": None if unsure else found["class"], "abstained": unsure}
            found |= {"explanation": drawn} if drawn else {}
            print(json.dumps(found, ensure_ascii=False))
        else:
            shown = "  ".join(f"{name} {probability:.1%}" for name, probability in top)
            print(printable(f"{prediction.path}  {'abstains  ' * unsure}{shown or 'ERROR ' + prediction.error}"))
        sys.stdout.flush()
    return first, bad, abstained


def as_object(prediction: Prediction, top: list[tuple[str, float]]) -> dict[str, Any]:
    """A prediction for `--json`; probabilities are the float32 numbers, unrounded."""
    if prediction.error:
        return {"path": prediction.path, "error": prediction.error}
    listed = [{"class": name, "probability": probability} for name, probability in top]
    return {"path": prediction.path, **listed[0], "top": listed}
