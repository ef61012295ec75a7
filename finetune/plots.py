"""The pictures of a run, drawn when it has ended."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchvision.transforms import v2

from finetune.data import Draw, Samples
from finetune.evaluate import Scores

# Okabe & Ito 2008: told apart by everyone.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6E6E6E"
MANY_CLASSES = 25
matplotlib.rcParams["text.parse_math"] = False  # a class may be called $x$


def _picture(axes: Axes, image: Tensor, title: str, color: str = "black") -> None:
    """Draw an image (C, H, W), of which one or three channels can be seen, with a title that fits over it."""
    seen = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    axes.imshow(seen.permute(1, 2, 0).numpy())  # (H, W, 3)
    lines = [textwrap.shorten(line, 26, placeholder="…") or line[:25] + "…" for line in title.split("\n") if line]
    axes.set_title("\n".join(lines), fontsize=8, color=color)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(color)
        spine.set_linewidth(0.5 if color == "black" else 2.5)


def _grid(rows: int, columns: int, title: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(1.6 * columns, 1.85 * rows + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in cells:
        axes.set_axis_off()
    return figure, cells


def augmentations(path: Path, samples: Samples, plain: v2.Transform, classes: list[str]) -> None:
    """A few training images: each as evaluation would see it, then as training sees it in the first five epochs."""
    chosen = _spread(samples.split.labels, 5)
    figure, cells = _grid(len(chosen), 6, "Left: as in evaluation. Right: as training sees it in epochs 1 to 5")
    undisturbed = Samples(samples.split, samples.channels, plain, samples.seed)
    for row, index in enumerate(chosen):
        views = [undisturbed[Draw(0, index, 1.0)][0], *(samples[Draw(epoch, index, 1.0)][0] for epoch in range(5))]
        for column, view in enumerate(views):
            axes = cells[6 * row + column]
            axes.set_axis_on()
            _picture(axes, view, classes[samples.split.labels[index]] if column == 0 else "")
    figure.savefig(path, dpi=120)


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
    figure.savefig(path, dpi=120)


def predictions(path: Path, samples: Samples, scores: Scores, classes: list[str]) -> None:
    """A grid of validation images, "predicted | true"; wrong ones are framed."""
    _scored(path, samples, scores, classes, _spread(samples.split.labels, 20), "Validation: predicted | true")


def top_losses(path: Path, samples: Samples, scores: Scores, classes: list[str]) -> None:
    """The validation images with the largest losses."""
    worst = scores.losses.argsort(descending=True)[:20].tolist()
    _scored(path, samples, scores, classes, worst, "Largest losses: predicted | true")


def _scored(path: Path, samples: Samples, scores: Scores, classes: list[str], chosen: list[int], title: str) -> None:
    figure, cells = _grid(-(-len(chosen) // 5), 5, title)
    for axes, index in zip(cells, chosen, strict=False):
        guess, label = int(scores.guesses[index, 0]), int(scores.labels[index])
        axes.set_axis_on()
        names = f"{scores.probabilities[index, 0]:.0%} {classes[guess]}\n| {classes[label]}"
        _picture(axes, samples[Draw(0, index, 1.0)][0], names, "black" if guess == label else ORANGE)
    figure.savefig(path, dpi=120)


def confusion(path: Path, scores: Scores, classes: list[str]) -> None:
    """The confusion matrix, each row as shares of its true class; counts in the cells where there is room."""
    counts = multiclass_confusion_matrix(scores.guesses[:, 0], scores.labels, len(classes)).numpy()
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
    figure.savefig(path, dpi=120)


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
