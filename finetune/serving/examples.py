"""Validation images of a run to show, wrong predictions among them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from finetune.data import run_images
from finetune.data.decode import load
from finetune.errors import UserError
from finetune.inference.predictor import Predictor
from finetune.reporting import run_folder
from finetune.training.evaluation import Scores

COUNT, WRONG = 12, 4  # images; of them misclassified ones, where there are as many
SHOWN_BY_BROWSERS = ("JPEG", "PNG", "WEBP", "BMP")


@dataclass(frozen=True)
class Example:
    """A validation image, its class and the run's prediction for it."""

    item: str | bytes
    """A path, or a PNG file's content."""
    true: str
    predicted: str

    def content(self) -> tuple[bytes, str]:
        """The file's bytes and media type; a type that browsers do not show is written as PNG. May raise `OSError`."""
        if isinstance(self.item, bytes):
            return self.item, "image/png"
        with Image.open(self.item) as image:
            if image.format in SHOWN_BY_BROWSERS:
                return Path(self.item).read_bytes(), Image.MIME[image.format]
            return _png(image), "image/png"


class Examples:
    """The examples of a run, found when they are first asked for: the images of a large set take a while to list."""

    def __init__(self, run: Path, predictor: Predictor) -> None:
        self._run, self._predictor, self._lock = run, predictor, threading.Lock()
        self._found: list[Example] | None = None

    def all(self) -> list[Example]:
        """The examples; none where the run, its scores or its images are gone."""
        with self._lock:
            if self._found is None:
                try:
                    self._found = find(self._run, self._predictor)
                except (UserError, OSError):
                    self._found = []
            return self._found


def find(run: Path, predictor: Predictor) -> list[Example]:
    """Misclassified images with the largest loss, then correct ones, of as many classes as there is room for.

    Raises `UserError` or `OSError` where the scores or the images cannot be read.
    """
    if not predictor.has_run or not (run / run_folder.SCORES).is_file():
        return []
    scores, _ = Scores.load(run / run_folder.SCORES)
    classes = predictor.metadata.classes
    imageset = run_images.read(predictor.recipe, predictor.config, predictor.metadata.net.in_channels)
    val = imageset.splits["val"]
    if scores.labels.tolist() != val.labels or imageset.classes != classes:
        return []
    correct = scores.predictions[:, 0] == scores.labels
    order = scores.losses.argsort().tolist()
    wrong = [k for k in reversed(order) if not correct[k]]
    shown = _classes_in_turn([k for k in order if correct[k]], val.labels)
    chosen = [*wrong[: max(WRONG, COUNT - len(shown))], *shown][:COUNT]
    channels = predictor.metadata.net.in_channels
    return [
        Example(_item(val.items[k], channels), classes[val.labels[k]], classes[int(scores.predictions[k, 0])])
        for k in (chosen if channels in (1, 3) else [])
    ]


def _item(item: Any, channels: int) -> str | bytes:
    """A path; anything else that `decode.load` takes as a PNG file's content."""
    return item if isinstance(item, str) else _png(to_pil_image(load(item, channels)))


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _classes_in_turn(positions: list[int], labels: list[int]) -> list[int]:
    """The positions, one of each class, then the second of each class, and so on."""
    seen: dict[int, int] = {}
    turns = []
    for position in positions:
        turns.append(seen.setdefault(labels[position], 0))
        seen[labels[position]] += 1
    return [position for _, position in sorted(zip(turns, positions, strict=True), key=lambda pair: pair[0])]
