"""Pictures of images, and all that is drawn when a run has ended."""

from __future__ import annotations

import textwrap
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_pil_image

from finetune.beside import Beside
from finetune.evaluate import Scores
from finetune.palette import ORANGE
from finetune.samples import Draw, Samples

TILE, GAP, LINE = 190, 14, 17  # pixels: a picture's side, the space between two, the height of a line


class _Picture(NamedTuple):
    """One picture of a grid."""

    image: Tensor
    """(C, H, W), uint8 or in [0, 1]; one or three of its channels are shown."""
    title: str
    """At most two lines, shortened to fit."""
    framed: bool = False


def _grid(path: Path, columns: int, title: str, pictures: Sequence[_Picture]) -> None:
    """Write pictures side by side, each under its title. Drawn by Pillow: axes for each of them would take seconds."""
    step, top = TILE + GAP, 3 * LINE
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * step + GAP, top + rows * (step + 2 * LINE)), "white")
    draw = ImageDraw.Draw(canvas)
    matplotlib = Path(find_spec("matplotlib").origin).parent  # not imported: that takes longer than the pictures
    place = matplotlib / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"  # Pillow's own lacks many signs
    font, larger = ImageFont.truetype(place, 12), ImageFont.truetype(place, 16)
    draw.text((canvas.width // 2, LINE), title, "black", larger, "mm")
    for k, (image, text, framed) in enumerate(pictures):
        x, y = GAP + k % columns * step, top + k // columns * (step + 2 * LINE) + 2 * LINE
        seen = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
        square = to_pil_image(seen).resize((TILE, TILE))
        if framed:
            draw.rectangle((x - 4, y - 4, x + TILE + 3, y + TILE + 3), fill=ORANGE)
        canvas.paste(square, (x, y))
        lines = [textwrap.shorten(line, 26, placeholder="…") or line[:25] + "…" for line in text.split("\n") if line]
        draw.text((x + TILE // 2, y - 6), "\n".join(lines), ORANGE if framed else "black", font, "md", align="center")
    beside = path.with_name(f".{path.name}")
    kind = "jpeg" if path.suffix in (".jpg", ".jpeg") else "png"
    canvas.save(beside, kind, compress_level=1, compress_type=zlib.Z_RLE)  # of photographs faster, and smaller
    beside.replace(path)


def augmentations(path: Path, samples: Samples, plain: v2.Transform, classes: list[str]) -> None:
    """A few training images: each as evaluation would see it, then five of the views that training sees."""
    chosen = _spread(samples.split.labels, 5)
    undisturbed, pictures = Samples(samples.split, samples.channels, plain, samples.seed), []
    for index in chosen:
        pictures.append(_Picture(undisturbed[Draw(0, index, 1.0)][0], classes[samples.split.labels[index]]))
        pictures += [_Picture(samples[Draw(epoch, index, 1.0)][0], "") for epoch in range(5)]
    _grid(path, 6, "Left: as in evaluation. Right: five augmented views for training", pictures)


def _spread(labels: list[int], count: int) -> list[int]:
    """Positions of `count` images, from as many classes as there are."""
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_class.setdefault(label, []).append(index)
    rounds = [members[k] for k in range(count) for members in by_class.values() if k < len(members)]
    step = max(1, len(by_class) // count)
    return (rounds[: len(by_class) : step] + rounds[len(by_class) :])[:count]


def predictions(path: Path, samples: Samples, scores: Scores, classes: list[str]) -> None:
    """A grid of validation images, "predicted | true"; wrong ones are framed."""
    _scored(path, samples, scores, classes, _spread(samples.split.labels, 20), "Validation: predicted | true")


def top_losses(path: Path, samples: Samples, scores: Scores, classes: list[str]) -> None:
    """The validation images with the largest losses."""
    worst = scores.losses.argsort(descending=True)[:20].tolist()
    _scored(path, samples, scores, classes, worst, "Largest losses: predicted | true")


def _scored(path: Path, samples: Samples, scores: Scores, classes: list[str], chosen: list[int], title: str) -> None:
    pictures = []
    for index in chosen:
        guess, label = int(scores.guesses[index, 0]), int(scores.labels[index])
        names = f"{scores.probabilities[index, 0]:.0%} {classes[guess]}\n| {classes[label]}"
        pictures.append(_Picture(samples[Draw(0, index, 1.0)][0], names, framed=guess != label))
    _grid(path, 5, title, pictures)


def answers(path: Path, found: list[Any], classes: list[str]) -> None:
    """A grid of images with what a model says of them; `found` are `inference.Answer`s that have their images."""
    pictures = []
    for answer in found:
        guess, probability = answer.top[0]
        pictures.append(_Picture(answer.image, f"{probability:.0%} {classes[guess]}\n{Path(answer.path).name}"))
    _grid(path, min(5, max(1, len(found))), "", pictures)


def preview(folder: Path, loaders: dict[str, DataLoader], classes: list[str]) -> None:
    """What can be drawn before training: the augmentations."""
    augmentations(folder / "augmentations.png", loaders["train"].dataset, loaders["val"].dataset.transform, classes)


def draw_all(
    folder: Path,
    history: list[dict[str, Any]],
    best_epoch: int,
    loaders: dict[str, DataLoader],
    scores: Scores,
    classes: list[str],
    charts: Beside | None = None,
) -> None:
    """All pictures of a run; `scores` are the best epoch's on the validation split.

    The charts are drawn beside the grids of images: by `charts`, a process that has the module of this name, else here.
    """
    val, figures = loaders["val"].dataset, (folder, history, best_epoch, scores.first(), classes)
    with ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(charts.call, "of_run", *figures) if charts else pool.submit(_draw_charts, *figures)
        preview(folder, loaders, classes)
        predictions(folder / "predictions.png", val, scores, classes)
        top_losses(folder / "top_losses.png", val, scores, classes)
        drawn.result()


def _draw_charts(*figures: Any) -> None:
    from finetune import charts  # late: it imports matplotlib

    charts.of_run(*figures)
