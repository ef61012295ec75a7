"""Pictures of images, and all that is drawn when a run has ended."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from finetune import charts
from finetune.charts import ORANGE
from finetune.data import Draw, Samples
from finetune.evaluate import Scores


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
    charts.save(figure, path)


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
    figure, cells = _grid(-(-len(chosen) // 5), 5, title)
    for axes, index in zip(cells, chosen, strict=False):
        guess, label = int(scores.guesses[index, 0]), int(scores.labels[index])
        axes.set_axis_on()
        names = f"{scores.probabilities[index, 0]:.0%} {classes[guess]}\n| {classes[label]}"
        _picture(axes, samples[Draw(0, index, 1.0)][0], names, "black" if guess == label else ORANGE)
    charts.save(figure, path)


def answers(path: Path, found: list[Any], classes: list[str]) -> None:
    """A grid of images with what a model says of them; `found` are `inference.Answer`s that have their images."""
    columns = min(5, max(1, len(found)))
    figure, cells = _grid(max(1, -(-len(found) // columns)), columns, "")
    for axes, answer in zip(cells, found, strict=False):
        axes.set_axis_on()
        guess, probability = answer.top[0]
        _picture(axes, answer.image, f"{probability:.0%} {classes[guess]}\n{Path(answer.path).name}")
    charts.save(figure, path)


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
    charts.curves(folder / "curves.png", history, best_epoch)
    charts.of_scores(folder, scores, classes, "Validation")
    predictions(folder / "predictions.png", val, scores, classes)
    top_losses(folder / "top_losses.png", val, scores, classes)
