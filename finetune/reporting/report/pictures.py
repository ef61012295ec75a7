"""The pictures in a report: which images, as thumbnails of the network's input, within a number of bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest

from PIL import Image
from torch import Tensor

from finetune.data.dataset import Draw, Samples
from finetune.data.transforms import evaluation_transform
from finetune.errors import UserError
from finetune.reporting.image_grids import to_picture
from finetune.reporting.report.scored import Scored
from finetune.reporting.report.subject import Subject

SIDE, QUALITY = 128, 60  # pixels of a thumbnail's longer side; of WebP's 100
WORST = 24  # mistakes that are shown
HeatMap = Callable[[Tensor, int], Image.Image]  # an image (C, H, W) and a class: the image with what speaks for it


@dataclass(frozen=True)
class Pictures:
    """The chosen images of a split, by their position in it, and their thumbnails."""

    worst: list[int] = field(default_factory=list)
    """The mistakes with the largest losses, largest first."""
    cells: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """The images of each cell of the confusion matrix, by true and predicted class; those of largest loss first."""
    thumbnails: dict[int, str] = field(default_factory=dict)
    """Addresses of the `data:` scheme."""
    heat_maps: dict[int, str] = field(default_factory=dict)
    """Of the worst mistakes: what speaks for the predicted class."""
    limited: bool = False
    """Whether images were left out because of their size in bytes."""


def choose(result: Scored, per_cell: int) -> Pictures:
    """Which images to show, without their thumbnails."""
    scores = result.scores
    order = scores.losses.argsort(descending=True).tolist()
    cells: dict[tuple[int, int], list[int]] = {}
    for k in order:
        cells.setdefault((int(scores.labels[k]), int(scores.predictions[k, 0])), []).append(k)
    worst = [k for k in order if scores.labels[k] != scores.predictions[k, 0]][:WORST]
    return Pictures(worst, {cell: members[:per_cell] for cell, members in cells.items()})


def embed(subject: Subject, chosen: Pictures, limit: int, heat_map: HeatMap | None) -> Pictures:
    """The same with thumbnails, in `limit` bytes of text.

    The worst mistakes come first, then one image of each cell in turn, mistakes before correct predictions.
    """
    result, known = subject.result, subject.metadata
    if result is None or result.images is None or known is None:
        return chosen
    transform = evaluation_transform(known.preprocess)
    samples = Samples(result.images, known.net.in_channels, transform, subject.recipe.run.seed)
    thumbnails: dict[int, str] = {}
    heat_maps: dict[int, str] = {}
    size = 0
    for k in _by_importance(chosen):
        try:
            image = samples[Draw(0, k, 1.0)].image  # (C, H, W)
        except (UserError, OSError):  # a file that is gone by now
            continue
        found = {"thumbnail": address(to_picture(image))}
        if heat_map and k in chosen.worst:
            found["heat map"] = address(heat_map(image, int(result.scores.predictions[k, 0])))
        size += sum(map(len, found.values()))
        if size > limit:
            return Pictures(chosen.worst, chosen.cells, thumbnails, heat_maps, limited=True)
        thumbnails[k] = found["thumbnail"]
        if "heat map" in found:
            heat_maps[k] = found["heat map"]
    return Pictures(chosen.worst, chosen.cells, thumbnails, heat_maps)


def _by_importance(chosen: Pictures) -> Iterator[int]:
    seen = set(chosen.worst)
    yield from chosen.worst
    wrong = [members for (true, predicted), members in chosen.cells.items() if true != predicted]
    correct = [members for (true, predicted), members in chosen.cells.items() if true == predicted]
    for group in (wrong, correct):
        for turn in zip_longest(*group):
            for k in turn:
                if k is not None and k not in seen:
                    seen.add(k)
                    yield k


def address(picture: Image.Image) -> str:
    """A thumbnail as an address of the `data:` scheme; the picture is scaled down in place."""
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.convert("RGB").save(file, "webp", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
