"""`evaluate`: score a run on labelled images."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from finetune.commands import parse
from finetune.errors import UserError

if TYPE_CHECKING:
    from finetune.evaluate import Scores
    from finetune.imagesets import ImageSet, Split
    from finetune.inference import Ready

SHOWN = 10  # errors, confusions and, of more than twice as many, classes in the terminal


@dataclass(frozen=True)
class Options:
    """Score a run on labelled images: loss, accuracy, per class, confusions, calibration, the errors.

    On several processes: accelerate launch --config_file launch/cpu_2proc.yaml -m finetune evaluate RUN
    """

    run: tyro.conf.Positional[Path]
    """A run's folder, or a model folder."""
    data: str | None = None
    """Images as train.py takes them. None: those of the run. Their classes are matched with the model's by name."""
    split: Literal["auto", "train", "val", "test", "all"] = "auto"
    """auto: val; of a folder given with --data that has no splits, all of it."""
    some_classes: bool = False
    """The images may lack some of the model's classes."""
    tta: bool = False
    """Test-time augmentation: the mean of an image's and its mirror image's probabilities."""
    json: bool = False
    """One JSON object with all figures, the confusion matrix and every error."""
    output: Path | None = None
    """Also write evaluation.json, errors.csv and pictures into this new folder."""
    skip_bad_images: bool = False
    """Leave out images that do not decode, and count them."""
    batch_size: int = 16
    """Images computed together in each process. The figures of two batch sizes may differ in the last bit."""
    workers: int = -1
    """Processes that decode images, per process. -1: none on a CPU, else up to 8."""
    precision: Literal["run", "auto", "no", "bf16", "fp16"] = "run"
    """run: as in training. The others as for train.py."""


def main(arguments: list[str]) -> int:
    """Print the figures; the exit code. All processes take part, and the main one speaks."""
    options = parse(Options, "evaluate", arguments)
    if options.batch_size < 1 or options.workers < -1:
        raise UserError("--batch-size must be at least 1, --workers a number of processes or -1.")
    output = options.output.expanduser() if options.output else None
    if output and output.exists():
        raise UserError(f"--output {output} exists already. Name a new folder, or remove it.")

    from finetune import inference, terminal

    ready = inference.make_ready(options.run, options.precision)
    console = terminal.make_console(ready.accelerator.is_main_process)
    images, imageset = read(ready, options)
    split, name = choose(images, imageset, options)
    split = matched(split, imageset.classes, ready.classes, options.some_classes)
    scores = score(ready, split, options.batch_size, options.workers, options.tta)
    if not ready.accelerator.is_main_process:
        return 0
    figures = measure(scores, ready.classes, names_of(split))
    figures = {"run": str(options.run), "data": images.data, "split": name, "tta": options.tta, **figures}
    if options.json:
        print(json.dumps(figures, ensure_ascii=False))
    else:
        show(figures, imageset.skipped, console)
    if output:
        write(output, figures, scores, ready.classes)
    return 0


def read(ready: Ready, options: Options) -> tuple[Any, ImageSet]:
    """The images' settings, and the images."""
    from finetune import imagesets

    if options.data is None and not ready.has_run:
        raise UserError(f"{options.run} is a model without its run: say on which images, with --data.")
    images, net = ready.recipe.images, ready.opened.net
    skip = options.skip_bad_images or images.skip_bad_images
    images = replace(images, data=options.data or images.data, skip_bad_images=skip)
    return images, imagesets.read(images, net.in_channels, ready.recipe.run.seed)


def choose(images: Any, imageset: ImageSet, options: Options) -> tuple[Split, str]:
    """The split that `--split` names, and its name."""
    from torch.utils.data import ConcatDataset

    from finetune.imagesets import Split

    name = options.split
    if name == "auto":
        folder = Path(images.data).expanduser()
        whole = options.data is not None and folder.is_dir() and not (folder / "train").is_dir()
        name = "all" if whole and not (folder / "x_train.npy").is_file() else "val"
    if name == "all":
        splits = list(imageset.splits.values())
        items = [split.items for split in splits]
        paths = all(isinstance(one, list) for one in items)
        joined = [item for one in items for item in one] if paths else ConcatDataset(items)
        return Split(joined, [label for split in splits for label in split.labels]), name
    if name not in imageset.splits:
        raise UserError(f"--split {name}: {images.data} has only {', '.join(imageset.splits)}.")
    return imageset.splits[name], name


def matched(split: Split, given: list[str], classes: list[str], some: bool) -> Split:
    """The split with each label as the position that the model gives a class of that name."""
    unknown, lacking = sorted(set(given) - set(classes)), sorted(set(classes) - set(given))
    if unknown or (lacking and not some):
        which = (
            f"the model does not know {', '.join(unknown[:5])}" if unknown else f"no image is {', '.join(lacking[:5])}"
        )
        raise UserError(
            f"the classes do not match: {which}. The model's are {', '.join(classes[:10])}"
            f"{', …' if len(classes) > 10 else ''}." + ("" if unknown else " If that is meant: --some-classes")
        )
    position = {name: k for k, name in enumerate(classes)}
    return replace(split, labels=[position[given[label]] for label in split.labels])


def score(ready: Ready, split: Split, batch_size: int, workers: int, tta: bool) -> Scores:
    """The scores of every image of the split, on all processes."""
    from finetune import data, inference
    from finetune.evaluate import evaluate

    recipe = ready.recipe
    images, training = replace(recipe.images, workers=workers), replace(recipe.training, eval_batch_size=batch_size)
    recipe = replace(recipe, images=images, training=training)
    loader = data.make_loaders({"val": split}, ready.preprocess, recipe, ready.accelerator)["val"]
    model = inference.Mirrored(ready.opened.model) if tta else ready.opened.model
    return evaluate(model, loader, ready.preprocess, recipe.run.channels_last, ready.accelerator, fill=batch_size)


def names_of(split: Split) -> list[str]:
    """What to call each image: its path, or its position where it comes from an array or a named set."""
    paths = isinstance(split.items, list) and all(isinstance(item, str) for item in split.items)
    return split.items if paths else [f"#{k}" for k in range(len(split.labels))]


def measure(scores: Scores, classes: list[str], names: list[str]) -> dict[str, Any]:
    """All figures, as JSON takes them."""
    from finetune import analysis
    from finetune.figures import calibration, confusion_matrix, largest_confusions, wilson

    low, high = wilson(scores.accuracy, len(scores.labels))
    matrix = confusion_matrix(scores.first(), len(classes))
    return {
        "images": len(scores.labels),
        "loss": scores.loss,
        "accuracy": scores.accuracy,
        "accuracy_interval": [low, high],
        "top5": scores.top5,
        "calibration_error": calibration(scores.first()).error,
        "classes": [asdict(row) for row in analysis.per_class(scores, classes)],
        "confusion": matrix.tolist(),
        "confusions": [
            {"true": classes[row], "predicted": classes[column], "images": count}
            for row, column, count in largest_confusions(matrix, SHOWN)
        ],
        "errors": analysis.errors(scores, classes, names),
    }


def show(figures: dict[str, Any], skipped: int, console: Any) -> None:
    """The figures as tables."""
    from rich.table import Table

    low, high = figures["accuracy_interval"]
    wrong = f"{skipped} images do not decode and are left out. " if skipped else ""
    console.print(f"{wrong}{figures['images']} images of {figures['data']}, split {figures['split']}", soft_wrap=True)
    console.print(
        f"accuracy {figures['accuracy']:.4f} (95 % interval {low:.3f} to {high:.3f})  top-5 {figures['top5']:.4f}  "
        f"loss {figures['loss']:.4f}  calibration error {figures['calibration_error']:.4f}\n"
    )
    rows = figures["classes"]
    many = len(rows) > 2 * SHOWN
    rows = sorted((row for row in rows if row["images"]), key=lambda row: row["f1"])[:SHOWN] if many else rows
    table = Table("class", *("images", "precision", "recall", "F1"), box=None, pad_edge=False, title_justify="left",
                  title=f"The {SHOWN} weakest of {len(figures['classes'])} classes" if many else None)  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(row["name"], str(row["images"]), *(f"{row[key]:.3f}" for key in ("precision", "recall", "f1")))
    console.print(table)
    if figures["confusions"]:
        console.print("\nmost confused: true → predicted (images)")
    for row in figures["confusions"]:
        console.print(f"  {row['true']} → {row['predicted']} ({row['images']})", soft_wrap=True)
    worst = figures["errors"][:SHOWN]
    if worst:
        console.print(f"\nworst of {len(figures['errors'])} errors: image, true, predicted")
    for row in worst:
        said = f"{row['true']}, {row['predicted']} {row['probability']:.1%}"
        console.print(f"  {row['image']}  {said}", soft_wrap=True)


def write(folder: Path, figures: dict[str, Any], scores: Scores, classes: list[str]) -> None:
    """The figures, the errors and pictures, as files."""
    from finetune import charts

    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be made: {error.strerror}.") from error
    (folder / "evaluation.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    with (folder / "errors.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["image", "true", "predicted", "probability", "loss"])
        table.writeheader()
        table.writerows(figures["errors"])
    charts.of_guesses(folder, scores.first(), classes, figures["split"])
