"""`predict`: classify images."""

from __future__ import annotations

import csv
import glob
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from finetune.commands import must_be_new, parse
from finetune.errors import UserError
from finetune.folders import EXTENSIONS

if TYPE_CHECKING:
    from finetune.inference import Answer

GRID = 40  # images of --grid


@dataclass(frozen=True)
class Options:
    """Classify images with a run's model: a line per image, the most probable classes first."""

    run: tyro.conf.Positional[Path]
    """A run's folder, or a model folder."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files, folders (searched to any depth), patterns such as 'photos/*.jpg', or - for a list on stdin."""
    topk: int = 5
    """Classes per image."""
    json: bool = False
    """A JSON object per line: path, class, probability, top; or path and error."""
    csv: bool = False
    """Comma-separated values, with a first line of names."""
    grid: Path | None = None
    """Also draw the first images with their answers, as a new .png file."""
    tta: bool = False
    """Test-time augmentation: the mean of an image's and its mirror image's probabilities."""
    batch_size: int = 16
    """Images computed together. The answers of two batch sizes may differ in the last bit."""
    workers: int = -1
    """Processes that decode images. -1: none on a CPU, else up to 8."""
    precision: Literal["run", "auto", "no", "bf16", "fp16"] = "run"
    """run: as in training. The others as for train.py."""


def main(arguments: list[str]) -> int:
    """Print the answers as they come. Images that do not decode have the error in their row, and at the end exit 2."""
    options = parse(Options, "predict", arguments)
    if options.topk < 1 or options.batch_size < 1:
        raise UserError("--topk and --batch-size must be at least 1.")
    if options.json and options.csv:
        raise UserError("--json or --csv: choose one.")
    grid = must_be_new("--grid", options.grid)
    paths = find(options.images)

    from rich.console import Console
    from rich.progress import track

    from finetune import inference

    ready = inference.make_ready(options.run, options.precision)
    model = inference.Mirrored(ready.opened.model) if options.tta else ready.opened.model
    bar = Console(stderr=True)
    hidden = not bar.is_terminal or sys.stdout.isatty()  # rows on a terminal are progress enough
    found = inference.answers(ready, paths, options.topk, options.batch_size, options.workers, model)
    shown = track(found, "images", len(paths), console=bar, transient=True, disable=hidden)
    kept, bad = write(shown, ready.classes, options)
    if grid:
        from finetune import plots

        plots.answers(grid, kept, ready.classes)
    if bad:
        raise UserError(f"{bad} of {len(paths)} images could not be read; their rows say why.")
    return 0


def find(words: Iterable[str]) -> list[str]:
    """The image files that the words name, in order; a `UserError` for one that names none."""
    paths: list[str] = []
    for word in words:
        if word == "-":
            paths += [line.strip() for line in sys.stdin if line.strip()]
        elif os.path.isdir(word):  # noqa: PTH112
            inside = sorted(
                os.path.join(place, name)
                for place, _, names in os.walk(word, followlinks=True)
                for name in names
                if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
            )
            if not inside:
                raise UserError(f"{word} holds no image. Images are: {' '.join(EXTENSIONS)}")
            paths += inside
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


def write(answers: Iterable[Answer], classes: list[str], options: Options) -> tuple[list[Answer], int]:
    """Print each answer as it comes; the first ones, for a picture, and how many images could not be read."""
    kept, bad = [], 0
    count = min(options.topk, len(classes))
    names = [f"{what}_{k}" for k in range(1, count + 1) for what in ("class", "probability")]
    table = csv.writer(sys.stdout, lineterminator="\n") if options.csv else None
    if table:
        table.writerow(["path", "error", *names])
    for answer in answers:
        bad += bool(answer.error)
        if options.grid and len(kept) < GRID and not answer.error:
            kept.append(answer)
        top = [(classes[k], probability) for k, probability in answer.top]
        if table:
            table.writerow([answer.path, answer.error, *(value for pair in top for value in pair)])
        elif options.json:
            print(json.dumps(as_object(answer, top), ensure_ascii=False))
        else:
            said = "  ".join(f"{name} {probability:.1%}" for name, probability in top)
            print(f"{answer.path}  {said or 'ERROR ' + answer.error}")
        sys.stdout.flush()
    return kept, bad


def as_object(answer: Answer, top: list[tuple[str, float]]) -> dict:
    """An answer for `--json`; probabilities are the float32 numbers, unrounded."""
    if answer.error:
        return {"path": answer.path, "error": answer.error}
    listed = [{"class": name, "probability": probability} for name, probability in top]
    return {"path": answer.path, **listed[0], "top": listed}
