"""`embed`: the features of images, as a file and as a picture."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import tyro

from finetune.commands import BatchSize, ImagesArgument, ModelArgument, WeightsOption, new_file
from finetune.commands.predict import find
from finetune.config.command_line import parse
from finetune.config.settings import Workers
from finetune.errors import UserError, printable

LEAST, MOST = 5, 5000  # images of a picture


@dataclass(frozen=True)
class Options:
    """Write the features of images: what a model's head gets, pooled, with the predicted class and its probability."""

    run: ModelArgument
    images: ImagesArgument
    """Image files, folders (with their subfolders), patterns such as 'photos/*.jpg', or - for a list on stdin. The name
    of an image's folder is its label, where it is one of the model's classes."""
    output: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """A new .npz file, for NumPy, or .parquet file, for data frames."""
    weights: WeightsOption = "default"
    picture: Path | None = None
    """Also draw the images in a plane (t-SNE), similar ones close together, with errors marked: a new .png file. Of
    more than 5,000 images it has that many, chosen at random."""
    batch_size: BatchSize = 16
    """Images per batch. Features of two batch sizes may differ in the last bit."""
    workers: Workers = -1
    """Worker processes that decode images. -1: none on a CPU, else up to 8."""
    precision: Literal["run", "auto", "no", "bf16", "fp16"] = "run"
    """run: as in training. Others: as for train.py."""


def main(arguments: list[str]) -> int:
    """Write the files.

    An image that does not decode is reported and left out. Raises `UserError` at the end where there was one.
    """
    options = parse(Options, "python -m finetune embed", arguments)
    output, picture = new_file("--output", options.output), new_file("--picture", options.picture)
    if output.suffix not in (".npz", ".parquet"):
        raise UserError(f"--output {output}: name a .npz or a .parquet file.")
    if picture and picture.suffix != ".png":
        raise UserError(f"--picture {picture}: name a .png file.")
    if output.suffix == ".parquet" and not find_spec("pyarrow"):
        raise UserError("a .parquet file needs a package that is not installed: pip install pyarrow. Or name .npz")
    if picture and not find_spec("sklearn"):
        raise UserError("--picture needs a package that is not installed: pip install scikit-learn")
    paths = find(options.images)

    from finetune.inference import features
    from finetune.inference.predictor import open_run

    predictor = open_run(options.run, options.precision, weights=options.weights)
    classes = predictor.metadata.classes
    chosen = set(random.Random(0).sample(paths, min(len(paths), MOST))) if picture else set()
    found = features.embed(predictor, paths, options.batch_size, options.workers, chosen)
    if picture and len(found.thumbnails) < LEAST:
        raise UserError(f"--picture needs at least {LEAST} images; these are {len(found.thumbnails)}.")
    features.save(found, classes, output)
    print(f"{len(found.paths)} × {found.features.shape[1]} features in {output}")
    if picture:
        from finetune.reporting import feature_map

        drawn = [k for k, path in enumerate(found.paths) if path in found.thumbnails]
        small = [found.thumbnails[found.paths[k]] for k in drawn]
        points = features.plane(found.features[drawn])
        feature_map.draw(picture, points, small, found.labels[drawn], found.predictions[drawn], classes)
        print(f"Picture  {picture}" + f", of {len(drawn)} images chosen at random" * (len(paths) > MOST))
    for path, error in found.errors.items():
        print(printable(f"{path}  ERROR {error}"), file=sys.stderr)
    if found.errors:
        raise UserError(f"{len(found.errors)} of {len(paths)} images could not be read and are left out.")
    return 0
