"""Pictures of images: heat maps, and grids of augmentations, predictions and largest losses."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_pil_image

from finetune.data.dataset import Draw, Samples
from finetune.data.transforms import to_input
from finetune.models.explain import Explainer
from finetune.reporting.palette import ORANGE
from finetune.runtime import files
from finetune.training.evaluation import Scores

TILE, GAP, LINE = 190, 14, 17  # pixels: a picture's side, the space between two, the height of a line
OPACITY = 0.5  # of the colours over the picture, which keeps half of its contrast


class _Picture(NamedTuple):
    """One picture of a grid."""

    image: Tensor | Image.Image
    """A tensor is (C, H, W), uint8 or in [0, 1]; shown in grey where it has fewer than three channels."""
    title: str
    """At most two lines, shortened to fit."""
    framed: bool = False


def _grid(path: Path, columns: int, title: str, pictures: Sequence[_Picture]) -> None:
    """Write images side by side, each under its title. Pillow draws them: matplotlib takes seconds for so many axes."""
    step, top = TILE + GAP, 3 * LINE
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * step + GAP, top + rows * (step + 2 * LINE)), "white")
    draw = ImageDraw.Draw(canvas)
    # matplotlib is not imported, which would take longer than the drawing. Pillow's own font lacks many characters.
    path_of_font = Path(find_spec("matplotlib").origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    font, larger = ImageFont.truetype(path_of_font, 12), ImageFont.truetype(path_of_font, 16)
    draw.text((canvas.width // 2, LINE), title, "black", larger, "mm")
    for k, (image, text, framed) in enumerate(pictures):
        x, y = GAP + k % columns * step, top + k // columns * (step + 2 * LINE) + 2 * LINE
        square = (to_picture(image) if isinstance(image, Tensor) else image).resize((TILE, TILE))
        if framed:
            draw.rectangle((x - 4, y - 4, x + TILE + 3, y + TILE + 3), fill=ORANGE)
        canvas.paste(square, (x, y))
        lines = [textwrap.shorten(line, 26, placeholder="…") or line[:25] + "…" for line in text.split("\n") if line]
        draw.text((x + TILE // 2, y - 6), "\n".join(lines), ORANGE if framed else "black", font, "md", align="center")
    with files.atomic(path) as temporary:
        canvas.save(temporary, "jpeg" if path.suffix in (".jpg", ".jpeg") else "png", compress_level=1)


def augmentations(path: Path, samples: Samples, plain: v2.Transform, classes: list[str]) -> None:
    """Five training images, each under the evaluation transform and in five augmented views."""
    chosen = _spread(samples.split.labels, 5)
    evaluated, pictures = Samples(samples.split, samples.channels, plain, samples.seed), []
    for index in chosen:
        pictures.append(_Picture(evaluated[Draw(0, index, 1.0)][0], classes[samples.split.labels[index]]))
        pictures += [_Picture(samples[Draw(epoch, index, 1.0)][0], "") for epoch in range(5)]
    _grid(path, 6, "Left: evaluation transform. Right: five augmented training views", pictures)


def _spread(labels: list[int], count: int) -> list[int]:
    """Positions of `count` images, from as many classes as possible."""
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_class.setdefault(label, []).append(index)
    rounds = [members[k] for k in range(count) for members in by_class.values() if k < len(members)]
    step = max(1, len(by_class) // count)
    return (rounds[: len(by_class) : step] + rounds[len(by_class) :])[:count]


def predictions(path: Path, samples: Samples, scores: Scores, classes: list[str]) -> None:
    """A grid of validation images, "predicted | true"; wrong predictions are framed."""
    chosen = _spread(samples.split.labels, 25)
    _grid(path, 5, "Validation: predicted | true", _scored(samples, scores, classes, chosen))


def top_losses(path: Path, samples: Samples, scores: Scores, classes: list[str], explainer: Explainer) -> None:
    """The validation images with the largest losses, each beside its heat map for the predicted class."""
    worst, pictures = scores.losses.argsort(descending=True)[:20].tolist(), []
    for index, picture in zip(worst, _scored(samples, scores, classes, worst), strict=True):
        pictures += [picture, _Picture(heat_map(explainer, picture.image, int(scores.predictions[index, 0])), "")]
    title = f"Largest losses: predicted | true. On the right: what speaks for the predicted class ({explainer.method})"
    _grid(path, 8, title, pictures)


def heat_map(explainer: Explainer, image: Tensor, label: int) -> Image.Image:
    """An image (C, H, W), uint8, under the heat map of a class: what of it speaks for that class."""
    x = to_input(image[None], explainer.preprocess, torch.device("cpu"), channels_last=True)  # (1, C, H, W)
    (heat,) = explainer(x, torch.tensor([label]))  # (H, W)
    return overlay(image, heat)


def to_picture(image: Tensor) -> Image.Image:
    """An image (C, H, W), uint8 or in [0, 1], as a picture: in grey where it has fewer than three channels."""
    return to_pil_image(image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1))


def overlay(image: Tensor | Image.Image, heat: Tensor) -> Image.Image:
    """A picture in grey under its heat map, from violet (0) over green to yellow (1).

    `image` is the network's input before normalisation, (C, H, W), uint8 or in [0, 1], or the same as a picture of any
    size; `heat` is (H, W) in [0, 1].
    """
    import matplotlib  # late: it takes long to import

    picture = image if isinstance(image, Image.Image) else to_picture(image)
    heat = F.interpolate(heat[None, None], picture.size[::-1], mode="bilinear")[0, 0]
    colours = matplotlib.colormaps["viridis"](heat.numpy(), bytes=True)[..., :3]  # (H, W, 3)
    return Image.blend(picture.convert("L").convert("RGB"), Image.fromarray(colours), OPACITY)


def _scored(samples: Samples, scores: Scores, classes: list[str], chosen: list[int]) -> list[_Picture]:
    pictures = []
    for index in chosen:
        predicted, label = int(scores.predictions[index, 0]), int(scores.labels[index])
        names = f"{scores.probabilities[index, 0]:.0%} {classes[predicted]}\n| {classes[label]}"
        pictures.append(_Picture(samples[Draw(0, index, 1.0)][0], names, framed=predicted != label))
    return pictures


def answers(path: Path, found: list[Any], classes: list[str]) -> None:
    """A grid of images with their predictions; `found` are `predictor.Prediction`s that have their images."""
    pictures = []
    for answer in found:
        label, probability = answer.top[0]
        pictures.append(_Picture(answer.image, f"{probability:.0%} {classes[label]}\n{Path(answer.path).name}"))
    _grid(path, min(5, max(1, len(found))), "", pictures)


def preview(folder: Path, loaders: dict[str, DataLoader], classes: list[str]) -> Path:
    """Draw augmentations.png, before training; its path."""
    path = folder / "augmentations.png"
    augmentations(path, loaders["train"].dataset, loaders["val"].dataset.transform, classes)
    return path


def of_run(
    folder: Path, loaders: dict[str, DataLoader], scores: Scores, classes: list[str], explainer: Explainer
) -> None:
    """All image grids of a run; `scores` are the best epoch's on the validation split, the explainer its model's."""
    preview(folder, loaders, classes)
    predictions(folder / "predictions.png", loaders["val"].dataset, scores, classes)
    top_losses(folder / "top_losses.png", loaders["val"].dataset, scores, classes, explainer)
