"""Charts of a run: curves, confusion matrix, accuracy per class, calibration."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from finetune.models import metadata
from finetune.reporting import run_folder
from finetune.reporting.palette import BLUE, GREEN, GREY, ORANGE, PALETTE
from finetune.runtime import files
from finetune.training import metrics
from finetune.training.metrics import Predictions

MANY_CLASSES = 25
DPI = 120
matplotlib.rcParams["text.parse_math"] = False  # a class may be called $x$


def save(figure: Figure, path: Path) -> None:
    """Write a figure, atomically."""
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format=path.suffix.removeprefix(".") or "png")


def set_style(axes: Axes, title: str = "") -> None:
    """The style of every chart: no box, a faint grid, a small title on the left."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def short(name: str, width: int = 24) -> str:
    """A class name that fits on an axis."""
    return textwrap.shorten(name, width, placeholder="…") if " " in name[:width] else _cut(name, width)


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"


def unfreezings(history: list[dict[str, Any]]) -> dict[int, list[str]]:
    """The depths that are unfrozen after the first epoch, by epoch: their rate is 0 until then."""
    started: dict[int, list[str]] = {}
    for name in history[-1]["lr"]:
        first = next((record["epoch"] for record in history if record["lr"].get(name)), None)
        if first is not None and first > 1:
            started.setdefault(first, []).append(name)
    return started


def curves(path: Path, history: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Loss and accuracy of both splits and the learning rates, by epoch; marks the run's result and unfreezing.

    The result, by summary.json, is the best epoch or weights between those before and after training. Of a head that
    was only solved, loss and accuracy by strength: see `strengths`.
    """
    best_epoch = summary["best_epoch"]
    way = summary.get("interpolation", 1)
    result = f"{way:.0%} of the way to epoch {best_epoch}" if 0 < way < 1 else f"best epoch {best_epoch}"
    if all("l2" in record for record in history):
        strengths(path, history, best_epoch)
        return
    epochs = [record["epoch"] for record in history]
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    panels = figure.subplot_mosaic([["loss", "accuracy"], ["rate", "rate"]], height_ratios=[2.4, 1])
    for name in ("loss", "accuracy"):
        axes = panels[name]
        for split, color, marker in (("train", BLUE, "o"), ("val", ORANGE, "s")):
            values = [record[f"{split}_{name}"] for record in history]
            axes.plot(epochs, values, color=color, marker=marker, markersize=4 if len(epochs) < 40 else 0, label=split)
        best = summary[f"best_val_{name}"]
        axes.plot(best_epoch, best, "*", color="black", markersize=11, zorder=5, label="result")
        set_style(axes, f"{name}; {result}: val {best:.4f}")
        axes.legend(fontsize=9, edgecolor="none", framealpha=0.9)
    panels["accuracy"].set_ylim(top=1.01)
    started = unfreezings(history)  # marked in green
    _rates(panels["rate"], history, epochs)
    for axes in panels.values():
        axes.set_xlabel("epoch")
        axes.set_xlim(min(epochs) - 0.3, max(epochs) + 0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.axvline(best_epoch, color="black", linestyle=":", linewidth=1)
        for epoch in started:
            axes.axvline(epoch, color=GREEN, linestyle="--", linewidth=1, alpha=0.8)
    for epoch, names in started.items():
        words = names[0] if len(names) == 1 else f"{len(names)} depths"
        panels["rate"].annotate(f" +{words}", (epoch, 1), xycoords=("data", "axes fraction"), fontsize=7, va="top",
                                color="#00664B")  # fmt: skip
    save(figure, path)


def rates(history: list[dict[str, Any]]) -> list[tuple[str, tuple[float, ...]]]:
    """The learning rates of up to four depths that differ, by epoch and under their names; a frozen depth has none."""
    alike: dict[tuple[float, ...], list[str]] = {}
    for name in sorted(history[-1]["lr"], key="head".__ne__):
        values = tuple(float(f"{record['lr'].get(name, 0.0):.6g}") for record in history)  # equal up to rounding
        alike.setdefault(values, []).append(name)
    kept = [(names, values) for values, names in alike.items() if any(values)]
    kept = kept if len(kept) <= 4 else [kept[round(k * (len(kept) - 1) / 3)] for k in range(4)]
    return [(names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}", values) for names, values in kept]


def _rates(axes: Axes, history: list[dict[str, Any]], epochs: list[int]) -> None:
    kept = rates(history)
    for (label, values), style in zip(kept, ("-", "--", "-.", ":"), strict=False):
        shown = [value or math.nan for value in values]
        axes.plot(epochs, shown, style, color=GREY, marker="o", markersize=3 if len(epochs) < 40 else 0, label=label)
    peaks = [max(values) for _, values in kept]
    if peaks and max(peaks) > 8 * min(peaks):
        axes.set_yscale("log", subs=[])
        axes.set_ylim(min(peaks) / 30, max(peaks) * 3)
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.0e}" if axes.get_yscale() == "log" else f"{rate:.3g}")
    set_style(axes, "learning rate at the end of the epoch" + (", of all trained depths" if len(kept) == 1 else ""))
    if len(kept) > 1:
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))  # the lines fill the panel


def strengths(path: Path, history: list[dict[str, Any]], best_epoch: int) -> None:
    """Loss and accuracy of a solved head by the strength of its L2 penalty; marks the chosen one."""
    chosen = next(record for record in history if record["epoch"] == best_epoch)
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for prefix, color, marker, label in (
            ("train", BLUE, "o", "train"), ("val", ORANGE, "s", "val"), ("fold", GREEN, "^", "held out of train"),
        ):  # fmt: skip
            shown = [record for record in history if f"{prefix}_{name}" in record]
            values = [record[f"{prefix}_{name}"] for record in shown]
            spread = (
                [record["fold_accuracy_sd"] for record in shown] if (prefix, name) == ("fold", "accuracy") else None
            )
            style = {"color": color, "marker": marker, "markersize": 4, "label": label, "capsize": 2}
            axes.errorbar([record["l2"] for record in shown], values, yerr=spread, **style)
        axes.axvline(chosen["l2"], color="black", linestyle=":", linewidth=1, label="chosen")
        axes.set_xscale("log", subs=[])
        axes.xaxis.set_major_formatter(lambda strength, _: f"{strength:.0e}")
        axes.invert_xaxis()
        axes.set_xlabel("L2 strength, strong to weak")
        set_style(axes, f"{name}; chosen: val {chosen[f'val_{name}']:.4f}")
        axes.legend(fontsize=9, edgecolor="none", framealpha=0.9)
    save(figure, path)


def comparison(path: Path, histories: dict[str, list[dict[str, Any]]]) -> None:
    """Validation accuracy and loss of several runs, by epoch."""
    figure = Figure(figsize=(10, 4.2 + 0.18 * -(-len(histories) // 3)), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        for k, (run, history) in enumerate(histories.items()):
            epochs, values = zip(*((record["epoch"], record[f"val_{name}"]) for record in history), strict=True)
            style = ("-", "--", ":", "-.")[k // len(PALETTE) % 4]
            axes.plot(
                epochs, values, style, color=PALETTE[k % len(PALETTE)], marker="o", markersize=3, label=_cut(run, 32)
            )
        set_style(axes, f"validation {name}")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=8)
    save(figure, path)


def rate_test(path: Path, tried: list[float], losses: list[float], suggested: float, own: float) -> None:
    """The loss against the rate, on a logarithmic axis, with the suggested rate and the recipe's own."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(tried, losses, color=BLUE)
    axes.axvline(suggested, color=ORANGE, label=f"suggested: {suggested:.1e}")
    axes.axvline(own, color=GREY, linestyle=":", label=f"the recipe's: {own:.1e}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:.0e}")
    low, first = min(losses), losses[0]
    axes.set_ylim(low - 0.1 * (first - low), max(first, low) + 0.6 * (first - low) + 1e-6)
    set_style(axes, "learning-rate range test: training loss, smoothed")
    axes.set_xlabel("learning rate of the head")
    axes.legend(edgecolor="none", framealpha=0.9, fontsize=9)
    save(figure, path)


def confusion(path: Path, predictions: Predictions, classes: list[str], split: str) -> None:
    """The confusion matrix, each row normalised by its true class, and a list of the largest confusions."""
    counts, few = metrics.confusion_matrix(predictions, len(classes)), len(classes) <= MANY_CLASSES
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    longest = max(len(short(name)) for name in classes)
    side = 2.4 + 0.07 * longest + (0.42 * len(classes) if few else 0.115 * len(classes))
    side, wide = max(side, 3.8), 2.6 if few else 4.4
    figure = Figure(figsize=(side + wide + 0.8, side), layout="constrained")
    axes, text_axes = figure.subplots(1, 2, width_ratios=[side, wide])
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.046, aspect=30, shrink=0.6, label="fraction of the true class")
    wrong = counts.sum() - counts.trace()
    axes.set_title(f"{split}: {wrong} of {counts.sum()} wrong", fontsize=10, loc="left")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    size, ticks, names = (9 if few else 5.5), range(len(classes)), [short(name) for name in classes]
    upright = len(classes) > 4 or longest > 10
    axes.set_xticks(ticks, names, rotation=90 if upright else 0, fontsize=size)
    axes.set_yticks(ticks, names, fontsize=size)
    if few:
        for row, column in np.argwhere(counts):
            shade = "white" if fractions[row, column] > 0.6 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", color=shade, fontsize=9)
    text_axes.set_axis_off()
    largest = metrics.largest_confusions(counts, 6 if len(classes) < 8 else 15)
    lines = [
        f"{count} × {short(classes[row], 20)} predicted as\n     {short(classes[column], 24)}"
        for row, column, count in largest
    ]
    words = "Largest confusions\n\n" + ("\n".join(lines) or "none")
    size = 9 if few else 14
    text_axes.text(0, 1, words, va="top", fontsize=size, linespacing=1.4, transform=text_axes.transAxes)
    save(figure, path)


def per_class(path: Path, predictions: Predictions, classes: list[str], split: str) -> None:
    """Each class's recall with its 95 % interval and its number of images, the lowest on top."""
    counts = metrics.confusion_matrix(predictions, len(classes))
    seen = zip(classes, counts.diagonal().tolist(), counts.sum(1).tolist(), strict=True)
    rows = sorted(
        ((correct / images, images, name) for name, correct, images in seen if images), key=lambda row: row[0]
    )
    few = len(rows) <= MANY_CLASSES
    columns = 1 if few else 2 if len(rows) <= 120 else 4
    per_column = -(-len(rows) // columns)
    width, height = (22 if columns == 4 else 6.5 * columns), 1.3 + (0.3 if few else 0.17) * per_column
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(f"{split}: recall per class (images), 95 % interval; dotted: accuracy over all",
                    fontsize=10)  # fmt: skip
    for k, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        shown = rows[k * per_column : (k + 1) * per_column]
        positions = np.arange(len(shown))
        recalls = np.array([recall for recall, _, _ in shown])
        ends = np.array([metrics.wilson(recall, images) for recall, images, _ in shown])
        bars = np.abs(ends.T - recalls)  # (2, rows)
        axes.errorbar(recalls, positions, xerr=bars, fmt="o", color=BLUE, ecolor="#8FC1E3", markersize=5 if few else 3)
        axes.axvline(predictions.correct.mean(), color=GREY, linestyle=":", linewidth=1)
        size = 9 if few else 6.5
        axes.set_yticks(positions, [f"{short(name)}  ({images})" for _, images, name in shown], fontsize=size)
        axes.set_ylim(per_column - 0.4, -0.6)
        axes.set_xlim(-0.02, 1.02)
        set_style(axes)
        axes.set_xlabel("recall")
    save(figure, path)


def calibration(path: Path, predictions: Predictions, split: str) -> None:
    """The reliability diagram: accuracy by confidence (the first prediction's probability), and a histogram of it."""
    found = metrics.calibration(predictions)
    figure = Figure(figsize=(5, 5.6), layout="constrained")
    top, below = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    middles = (found.edges[1:] + found.edges[:-1]) / 2
    counts, accuracy = found.counts, found.accuracy
    filled = counts > 0
    top.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="perfect calibration")
    top.bar(middles[filled], accuracy[filled], width=1 / metrics.BINS * 0.92, color=BLUE, alpha=0.35, label="accuracy")
    ends = np.array([metrics.wilson(a, int(c)) for a, c in zip(accuracy[filled], counts[filled], strict=True)])
    confidence = found.confidence[filled]
    label = "accuracy at mean\nconfidence, 95 %"
    bars = np.abs(ends.T - accuracy[filled])  # (2, bins)
    top.errorbar(confidence, accuracy[filled], yerr=bars, fmt="s", color=ORANGE, markersize=4, label=label)
    set_style(top, f"{split}: expected calibration error {found.error:.3f}")
    top.set_ylim(0, 1.03)
    top.set_ylabel("accuracy")
    top.legend(edgecolor="none", framealpha=0.9, fontsize=8, loc="best")
    below.bar(middles, counts, width=1 / metrics.BINS * 0.92, color=GREY, alpha=0.6)
    set_style(below)
    below.set_xlabel("confidence")
    below.set_ylabel("images")
    below.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    below.set_xlim(0, 1)
    save(figure, path)


def of_predictions(folder: Path, predictions: Predictions, classes: list[str], split: str) -> None:
    """All charts of a model's predictions on one split."""
    confusion(folder / "confusion.png", predictions, classes, split)
    per_class(folder / "per_class.png", predictions, classes, split)
    calibration(folder / "calibration.png", predictions, split)


def of_run(run: Path) -> None:
    """All charts of a finished run, into its plots/, from its files: metrics.jsonl, summary.json, model/, scores."""
    found = run_folder.read(run)
    classes = metadata.read(run / "model").classes
    curves(run / "plots" / "curves.png", found.history, found.summary)
    of_predictions(run / "plots", Predictions.load(run / run_folder.SCORES), classes, "Validation")
