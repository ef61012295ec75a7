"""The pictures of a run, drawn when it has ended."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_pil_image

from finetune.data import Draw, Samples
from finetune.evaluate import Scores

# Okabe & Ito 2008: told apart by everyone.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6E6E6E"
MANY_CLASSES = 25
TILE, GAP, LINE = 190, 14, 17  # pixels: a picture's side, the space between two, the height of a line
matplotlib.rcParams["text.parse_math"] = False  # a class may be called $x$


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
    place = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # Pillow's own lacks many signs
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
    canvas.save(path, compress_level=1)


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


def curves(path: Path, history: list[dict[str, Any]], best_epoch: int) -> None:
    """Loss and accuracy of both splits and the head's learning rate, by epoch (from 1); the best epoch is marked."""
    epochs = [line["epoch"] for line in history]
    best = history[best_epoch - 1]
    figure = Figure(figsize=(8, 5), layout="constrained")
    panels = figure.subplot_mosaic([["loss", "accuracy"], ["rate", "rate"]], height_ratios=[3, 1])
    for name in ("loss", "accuracy"):
        axes = panels[name]
        for split, color, marker in (("train", BLUE, "o"), ("val", ORANGE, "s")):
            values = [line[f"{split}_{name}"] for line in history]
            axes.plot(epochs, values, color=color, marker=marker, markersize=4, label=split)
        axes.axvline(best_epoch, color=GREY, linestyle=":", linewidth=1)
        axes.set_title(f"{name}, best epoch {best_epoch}: val {best[f'val_{name}']:.4f}", fontsize=10)
        axes.legend(frameon=False)
    panels["accuracy"].set_ylim(top=1.005)
    panels["rate"].plot(epochs, [line["lr"]["head"] for line in history], color=GREY, marker="o", markersize=3)
    panels["rate"].set_title("learning rate of the head at the end of the epoch", fontsize=10)
    for axes in panels.values():
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, pil_kwargs={"compress_level": 1})


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


def confusion(path: Path, scores: Scores, classes: list[str]) -> None:
    """The confusion matrix, each row as shares of its true class; counts in the cells where there is room."""
    cells = scores.labels * len(classes) + scores.guesses[:, 0]
    counts = cells.bincount(minlength=len(classes) ** 2).view(len(classes), -1).numpy()  # (true, predicted)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(3.2 + 0.45 * len(classes), 14)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the true class")
    wrong = counts.sum() - counts.trace()
    axes.set_title(f"Validation: {wrong} of {counts.sum()} wrong", fontsize=10)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    size = 9 if len(classes) <= MANY_CLASSES else 4
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=90 if len(classes) > 4 else 0, fontsize=size)
    axes.set_yticks(ticks, classes, fontsize=size)
    if len(classes) <= MANY_CLASSES:
        for row, column in np.argwhere(counts):
            shade = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", color=shade, fontsize=9)
    figure.savefig(path, dpi=120, pil_kwargs={"compress_level": 1})


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
) -> None:
    """All pictures of a run; `scores` are the best epoch's on the validation split."""
    val = loaders["val"].dataset
    preview(folder, loaders, classes)
    curves(folder / "curves.png", history, best_epoch)
    predictions(folder / "predictions.png", val, scores, classes)
    confusion(folder / "confusion.png", scores, classes)
    top_losses(folder / "top_losses.png", val, scores, classes)
