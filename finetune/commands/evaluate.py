"""`evaluate`: score a run on labelled images."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune.commands import BatchSize, ModelArgument, WeightsOption
from finetune.config.command_line import parse
from finetune.config.settings import Probability, Workers
from finetune.errors import UserError, listed, printable
from finetune.runtime import files

if TYPE_CHECKING:
    from rich.console import Console

    from finetune.config.settings import Images
    from finetune.data.types import ImageSet, Split
    from finetune.inference.predictor import Predictor
    from finetune.training.evaluation import Scores
    from finetune.training.metrics import Predictions

SHOWN = 10  # errors and confusions in the terminal; classes too, where there are more than twice as many


@dataclass(frozen=True)
class Options:
    """Score a run on labelled images: loss, accuracy, per class, confusions, calibration, the errors.

    On several processes: accelerate launch --config_file launch/cpu_2proc.yaml -m finetune evaluate RUN
    """

    run: ModelArgument
    weights: WeightsOption = "default"
    data: str | None = None
    """Images, as for train.py. None: the run's. Classes are matched with the model's by name; ImageNet's also in the
    plural and by WordNet id, and some will do."""
    split: Literal["auto", "train", "val", "test", "all"] = "auto"
    """auto: val; all, for a --data folder without splits."""
    some_classes: bool = False
    """The images may lack some of the model's classes."""
    abstain: Probability = 0.0
    """Also give the accuracy on images whose highest probability is at least this, and their fraction. 0: neither."""
    tta: bool = False
    """Test-time augmentation: the mean of an image's and its mirror image's probabilities."""
    json: bool = False
    """One JSON object with all metrics, the confusion matrix and every error."""
    output: Path | None = None
    """Also write evaluation.json, errors.csv and charts into this new folder."""
    skip_bad_images: bool = False
    """Skip images that do not decode, and count them."""
    batch_size: BatchSize = 16
    """Images per batch and process. Results of two batch sizes may differ in the last bit."""
    workers: Workers = -1
    """Worker processes that decode images, per process. -1: none on a CPU, else up to 8."""
    precision: Literal["run", "auto", "no", "bf16", "fp16"] = "run"
    """run: as in training. Others: as for train.py."""


def main(arguments: list[str]) -> int:
    """Print the metrics. Collective; the main process prints."""
    options = parse(Options, "python -m finetune evaluate", arguments)
    output = files.expanded(options.output) if options.output else None
    if output and (output.exists() or output.is_symlink()):
        raise UserError(f"--output {output} exists already. Name a new folder, or delete it.")

    from finetune.inference.predictor import open_run
    from finetune.reporting import terminal

    predictor = open_run(options.run, options.precision, options.tta, options.weights)
    console = terminal.make_console(predictor.accelerator.is_main_process)
    images, imageset = read(predictor, options)
    split, name = choose(images, imageset, options)
    names, some = imageset.classes, options.some_classes
    if predictor.folder is None:
        from finetune.models.pretrained import imagenet_names

        names, some = imagenet_names(names), True
    split = matched(split, names, predictor.metadata.classes, some)
    scores = score(predictor, split, options.batch_size, options.workers)
    if not predictor.accelerator.is_main_process:
        return 0
    about = {"run": str(options.run), "data": images.data, "split": name, "tta": options.tta}
    classes = predictor.metadata.classes
    errors = scores.errors(classes, split.names())
    first, classes = (scores.first(), classes) if predictor.folder else scores.first().of_occurring(classes)
    metrics = {**about, **measure(scores, first, classes), "errors": errors}
    if options.abstain:
        metrics["abstain"] = {"below": options.abstain, **coverage(scores, options.abstain)}
    if options.json:
        print(json.dumps(metrics, ensure_ascii=False))
    else:
        show(metrics, len(imageset.bad), console)
    if output:
        write(output, metrics, first, classes)
    return 0


def read(predictor: Predictor, options: Options) -> tuple[Images, ImageSet]:
    """The settings of the images, and the images."""
    from finetune.data import readers, run_images

    if options.data is None and not predictor.has_run:
        raise UserError(f"{options.run} is a model without its run: name the images with --data.")
    images = predictor.recipe.images
    skip = options.skip_bad_images or images.skip_bad_images
    images = replace(images, data=options.data or images.data, skip_bad_images=skip)
    recipe, channels = predictor.recipe, predictor.metadata.net.in_channels
    if options.data:
        images = replace(images, folds=None, fold=None, exclude=None)
        return images, readers.read(images, channels, recipe.run.seed)
    try:
        return images, run_images.read(replace(recipe, images=images), predictor.config, channels)
    except UserError as error:
        raise UserError(f"{error} Name the images to evaluate on: --data DATA") from error


def choose(images: Images, imageset: ImageSet, options: Options) -> tuple[Split, str]:
    """The split that `--split` names, and its name."""
    from finetune.data.types import joined

    name = options.split
    if name == "auto":
        folder = files.expanded(images.data)
        whole = options.data is not None and folder.is_dir() and not (folder / "train").is_dir()
        name = "all" if whole and not (folder / "x_train.npy").is_file() else "val"
    if name == "all":
        return joined(list(imageset.splits.values())), name
    if name not in imageset.splits:
        raise UserError(f"--split {name}: {images.data} has only {', '.join(imageset.splits)}.")
    return imageset.splits[name], name


def matched(split: Split, names: list[str], classes: list[str], some: bool) -> Split:
    """The split with its labels, indices into `names`, as indices into the model's `classes`.

    Raises `UserError` where the model lacks one of the names, or, without `some`, the names lack a class.
    """
    unknown, lacking = sorted(set(names) - set(classes)), sorted(set(classes) - set(names))
    if unknown or (lacking and not some):
        which = f"the model does not know {listed(unknown)}" if unknown else f"no image is {listed(lacking)}"
        raise UserError(
            f"the classes do not match: {which}. The model's are {listed(classes, 10)}."
            + ("" if unknown else " If that is intended: --some-classes")
        )
    position = {name: k for k, name in enumerate(classes)}
    return replace(split, labels=[position[names[label]] for label in split.labels])


def score(predictor: Predictor, split: Split, batch_size: int, workers: int) -> Scores:
    """The scores of every image of the split. Collective."""
    from finetune.data.loader import make_loaders
    from finetune.training.evaluation import evaluate
    from finetune.training.step import Feed

    recipe, accelerator = predictor.recipe, predictor.accelerator
    images, training = replace(recipe.images, workers=workers), replace(recipe.training, eval_batch_size=batch_size)
    recipe = replace(recipe, images=images, training=training)
    loader = make_loaders({"val": split}, predictor.metadata.preprocess, recipe, accelerator)["val"]
    feed = Feed(predictor.model, loader, predictor.metadata.preprocess)
    return evaluate(feed, accelerator, recipe.run.channels_last, fill=batch_size)


def measure(scores: Scores, first: Predictions, classes: list[str]) -> dict[str, Any]:
    """All metrics, as values for JSON; `first` are the scores' first predictions, of these classes."""
    from finetune.training.metrics import calibration, confusion_matrix, largest_confusions, per_class, wilson

    low, high = wilson(scores.accuracy, len(scores.labels))
    matrix = confusion_matrix(first, len(classes))
    return {
        "images": len(scores.labels),
        "loss": scores.loss,
        "accuracy": scores.accuracy,
        "accuracy_interval": [low, high],
        "top5": scores.top5,
        "calibration_error": calibration(first).error,
        "classes": [asdict(row) for row in per_class(first, classes)],
        "confusion": matrix.tolist(),
        "confusions": [
            {"true": classes[row], "predicted": classes[column], "images": count}
            for row, column, count in largest_confusions(matrix, SHOWN)
        ],
    }


def coverage(scores: Scores, below: float) -> dict[str, float | None]:
    """The fraction of images whose highest probability is not below this, and their accuracy; None for no image."""
    kept = scores.probabilities[:, 0] >= below  # (N,)
    correct = (scores.predictions[:, 0] == scores.labels)[kept]
    return {
        "coverage": kept.double().mean().item(),
        "accuracy": correct.double().mean().item() if len(correct) else None,
    }


def show(metrics: dict[str, Any], skipped: int, console: Console) -> None:
    """Print the metrics as tables."""
    from rich.table import Table

    low, high = metrics["accuracy_interval"]
    note = f"{skipped} images do not decode and are skipped. " if skipped else ""
    source = printable(metrics["data"])
    console.print(f"{note}{metrics['images']} images of {source}, split {metrics['split']}", soft_wrap=True)
    console.print(
        f"accuracy {metrics['accuracy']:.4f} (95 % interval {low:.3f} to {high:.3f})  top-5 {metrics['top5']:.4f}  "
        f"loss {metrics['loss']:.4f}  calibration error {metrics['calibration_error']:.4f}\n"
    )
    if found := metrics.get("abstain"):
        accuracy = "none" if found["accuracy"] is None else f"accuracy {found['accuracy']:.4f}"
        console.print(
            f"probability {found['below']:g} or more: {found['coverage']:.1%} of the images, {accuracy} on them\n"
        )
    rows = metrics["classes"]
    if len(rows) > 2 * SHOWN:
        rows = [row for row in rows if row["images"]]
    many = len(rows) > 2 * SHOWN
    rows = sorted(rows, key=lambda row: row["f1"])[:SHOWN] if many else rows
    title = f"The {SHOWN} weakest of {len(metrics['classes'])} classes" if many else None
    columns = ("class", "images", "correct", "precision", "recall", "F1")
    table = Table(*columns, box=None, pad_edge=False, title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        values = (f"{row[key]:.3f}" for key in ("precision", "recall", "f1"))
        table.add_row(printable(row["name"]), str(row["images"]), str(round(row["images"] * row["recall"])), *values)
    console.print(table)
    if metrics["confusions"]:
        console.print("\nmost confused: true → predicted (images)")
    for row in metrics["confusions"]:
        console.print(printable(f"  {row['true']} → {row['predicted']} ({row['images']})"), soft_wrap=True)
    worst = metrics["errors"][:SHOWN]
    if worst:
        console.print(f"\nworst of {len(metrics['errors'])} errors: image, true, predicted")
    for row in worst:
        labels = f"{row['true']}, {row['predicted']} {row['probability']:.1%}"
        console.print(printable(f"  {row['image']}  {labels}"), soft_wrap=True)


def write(folder: Path, metrics: dict[str, Any], first: Predictions, classes: list[str]) -> None:
    """Write evaluation.json, errors.csv and charts into a new folder."""
    from finetune.reporting import charts

    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be made: {error.strerror}.") from error
    files.write_text(folder / "evaluation.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    # Names of files may be other bytes than UTF-8, which Python keeps as surrogates.
    with (folder / "errors.csv").open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = csv.DictWriter(file, ["image", "true", "predicted", "probability", "loss"])
        table.writeheader()
        table.writerows(metrics["errors"])
    charts.of_predictions(folder, first, classes, metrics["split"])
