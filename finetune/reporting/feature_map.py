"""A picture of features in two dimensions: similar images lie close together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from torch import Tensor

from finetune.reporting import charts
from finetune.reporting.image_grids import to_picture
from finetune.reporting.palette import GREY, PALETTE

MARKERS = "os^D"  # each with all colours of the palette
APART, CORNER = 0.055, 0.018  # of the picture's side: between two thumbnails, and from a thumbnail's middle to its edge


def draw(
    path: Path,
    points: np.ndarray,
    thumbnails: list[Tensor],
    labels: np.ndarray,
    predictions: np.ndarray,
    classes: list[str],
) -> None:
    """Draw images at `points` (N, 2), with a thumbnail wherever there is room, coloured by class.

    A class is the label or, where that is -1, the prediction (N,). An image whose label and prediction differ has a
    cross. The classes with the most images have colours of their own.
    """
    of_image = np.where(labels >= 0, labels, predictions)
    common = [k for k, _ in Counter(of_image.tolist()).most_common(len(PALETTE) * len(MARKERS))]
    style = {k: (PALETTE[n % len(PALETTE)], MARKERS[n // len(PALETTE)]) for n, k in enumerate(sorted(common))}
    wrong = (labels >= 0) & (labels != predictions)
    figure = Figure(figsize=(13, 10), layout="constrained")
    axes = figure.subplots()
    placed = (points - points.min(0)) / np.ptp(points, axis=0).clip(1e-6)  # in [0, 1]
    marks, crosses = placed.copy(), placed.copy()
    for k in _with_room(placed, wrong):
        image = OffsetImage(np.asarray(to_picture(thumbnails[k])), zoom=0.6)
        color = style.get(of_image[k], (GREY, "o"))[0]
        frame = {"edgecolor": color, "linewidth": 2}
        axes.add_artist(AnnotationBbox(image, placed[k], pad=0.12, bboxprops=frame, zorder=1))
        marks[k] += (-CORNER, CORNER)  # its marks lie on the corners
        crosses[k] += (CORNER, CORNER)
    handles = []
    for k in [*style, None]:
        chosen = of_image == k if k is not None else ~np.isin(of_image, common)
        color, marker = style[k] if k is not None else (GREY, "o")
        if chosen.any():
            x, y = marks[chosen].T
            axes.scatter(x, y, s=30, c=color, marker=marker, edgecolors="white", linewidths=0.6, zorder=2)
            name = charts.short(classes[k]) if k is not None else f"{len(set(of_image[chosen].tolist()))} other classes"
            handles.append(Line2D([], [], color=color, marker=marker, linestyle="", label=f"{name} ({chosen.sum()})"))
    if wrong.any():
        x, y = crosses[wrong].T
        for color, width in (("white", 5), ("black", 2.2)):  # legible on any picture
            axes.scatter(x, y, s=110, c=color, marker="x", linewidths=width, zorder=3)
        handles.append(Line2D([], [], color="black", marker="x", linestyle="", markeredgewidth=2,
                              label=f"error ({wrong.sum()})"))  # fmt: skip
    labelled = f", {int((labels >= 0).sum())} of them labelled" if (labels >= 0).any() else ", coloured by prediction"
    charts.set_style(axes, f"Features of {len(points)} images{labelled}: t-SNE, close is similar")
    axes.set(xticks=[], yticks=[], xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    axes.spines[["left", "bottom"]].set_visible(False)
    figure.legend(handles=handles, loc="outside right upper", fontsize=9, edgecolor="none")
    charts.save(figure, path)


def _with_room(placed: np.ndarray, first: np.ndarray) -> list[int]:
    """Positions of images (N, 2) that lie apart, errors first: their thumbnails do not overlap."""
    chosen: list[int] = []
    for k in [*np.flatnonzero(first), *np.flatnonzero(~first)]:
        if all(np.abs(placed[k] - placed[other]).max() > APART for other in chosen):
            chosen.append(int(k))
    return chosen
