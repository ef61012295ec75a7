"""The charts of a report: curves by epoch or by strength, of one run or several, and reliability."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from finetune.reporting import charts
from finetune.reporting.report.line_chart import Axis, Chart, Mark, Series
from finetune.reporting.report.scored import Scored, is_number
from finetune.reporting.run_folder import RunFiles
from finetune.training import metrics

EPOCH = Axis("epoch", "{:.0f}".format, whole=True)
STRENGTH = Axis("L2 strength", "{:.2g}".format, log=True, falling=True)
LOSS = Axis("loss", "{:.4g}".format)


def percent(value: float) -> str:
    """A fraction as a percentage with one decimal."""
    return f"{100 * value:.1f} %"


def tick(value: float) -> str:
    """A fraction as a percentage with as many decimals as it needs."""
    return f"{100 * value:.4g} %"


def probability(value: float) -> str:
    """A probability as a percentage; none is said to be 0 or 100 %."""
    return "< 0.1 %" if value < 0.0005 else "> 99.9 %" if value > 0.9995 else percent(value)


ACCURACY = Axis("accuracy", tick)
TRAIN, VAL, HELD_OUT = ("training", 0), ("validation", 1), ("held out of training", 2)


def of_run(history: list[dict[str, Any]], best_epoch: float) -> list[Chart]:
    """Loss, accuracy and learning rates by epoch; of a head that was only solved, by the strength of its penalty."""
    if all(is_number(record.get("l2")) for record in history):
        return _by_strength(history, best_epoch)
    marks = [Mark(best_epoch, "best")]
    for epoch, names in charts.unfreezings(history).items():
        marks.append(Mark(epoch, f"+ {names[0] if len(names) == 1 else f'{len(names)} depths'}", "started"))
    found = []
    for axis in (LOSS, ACCURACY):
        series = [_series(history, "epoch", f"{name}_{axis.name}", *what)
                  for name, what in (("train", TRAIN), ("val", VAL))]  # fmt: skip
        found.append(Chart(axis.name.capitalize(), EPOCH, axis, series, marks))
    rates = _rates(history)
    return [*found, *([Chart("Learning rate", EPOCH, *rates, marks)] if rates else [])]


def _by_strength(history: list[dict[str, Any]], best_epoch: float) -> list[Chart]:
    marks = [Mark(record["l2"], "chosen") for record in history if record["epoch"] == best_epoch]
    found = []
    for axis in (LOSS, ACCURACY):
        known = [(name, what) for name, what in (("train", TRAIN), ("val", VAL), ("fold", HELD_OUT))
                 if all(is_number(record.get(f"{name}_{axis.name}")) for record in history)]  # fmt: skip
        series = [_series(history, "l2", f"{name}_{axis.name}", *what) for name, what in known]
        found.append(Chart(axis.name.capitalize(), STRENGTH, axis, series, marks))
    return found


def _series(history: list[dict[str, Any]], x: str, y: str, name: str, color: int) -> Series:
    spread = "fold_accuracy_sd" if y == "fold_accuracy" else ""
    points = [(record[x], record[y]) for record in history]
    if not spread or not all(is_number(record.get(spread)) for record in history):
        return Series(name, color, points, dashed=color == 0)
    ends = [(y - record[spread], y + record[spread]) for (_, y), record in zip(points, history, strict=True)]
    texts = [f"{percent(y)} ± {percent(record[spread])}" for (_, y), record in zip(points, history, strict=True)]
    return Series(name, color, points, False, ends, texts)


def _rates(history: list[dict[str, Any]]) -> tuple[Axis, list[Series]] | None:
    """The learning rates of the depths, those that are equal as one; None where none is ever trained."""
    kept = charts.rates(history)
    if not kept:
        return None
    peaks = [max(values) for _, values in kept]
    log = max(peaks) > 8 * min(peaks)
    series = []
    for color, (label, values) in enumerate(kept):
        points = [(record["epoch"], value or None) for record, value in zip(history, values, strict=True)]
        series.append(Series(label, color, points, dashed=color % 2 == 1))
    floor = min(peaks) / 30 if log else 0.0
    if log:
        for k, one in enumerate(series):
            series[k] = Series(one.name, one.color, [(x, y and max(y, floor)) for x, y in one.points], one.dashed,
                               texts=[f"{y or 0:.2e}" for _, y in one.points])  # fmt: skip
    return Axis("learning rate", "{:.2g}".format, log=log, limits=(floor, None)), series


def of_runs(names: Sequence[str], runs: Sequence[RunFiles]) -> list[Chart]:
    """Validation accuracy and loss of several runs: by strength where all are solved heads, else by epoch.

    By epoch, a head that was only solved is a level line, that of the chosen strength.
    """
    solved = [all(is_number(record.get("l2")) for record in run.history) for run in runs]
    axis, x = (STRENGTH, "l2") if all(solved) else (EPOCH, "epoch")
    trained = [run for run, one in zip(runs, solved, strict=True) if not one]
    last = max((record["epoch"] for run in trained for record in run.history), default=1)
    found = []
    for y in (ACCURACY, LOSS):
        series = []
        for color, (name, run, one) in enumerate(zip(names, runs, solved, strict=True)):
            points = [(record[x], record[f"val_{y.name}"]) for record in run.history]
            if one and trained:
                best = run.summary[f"best_val_{y.name}"]
                points = [(min(1, last), best), (last, best)]
            series.append(Series(name, color, points, dashed=color % 2 == 1))
        found.append(Chart(f"Validation {y.name}", axis, y, series))
    return found


def reliability(result: Scored) -> Chart:
    """Accuracy by confidence, in bins, with 95 % intervals; before the temperature too, where that is known."""
    known = [("with the temperature" if result.uncalibrated else "model", 0, result.scores.first())]
    if result.uncalibrated:
        known.append(("before", 1, result.uncalibrated))
    series = [Series("perfect calibration", 3, [(0.0, 0.0), (1.0, 1.0)], guide=True)]
    for name, color, predictions in known:
        found = metrics.calibration(predictions)
        filled = [k for k in range(len(found.counts)) if found.counts[k]]
        points = [(float(found.confidence[k]), float(found.accuracy[k])) for k in filled]
        ends = [metrics.wilson(float(found.accuracy[k]), int(found.counts[k])) for k in filled]
        bins = list(pairwise(np.round(found.edges, 2).tolist()))
        texts = [f"{percent(found.accuracy[k])} of {found.counts[k]} images ({bins[k][0]:g} to {bins[k][1]:g})"
                 for k in filled]  # fmt: skip
        series.append(Series(f"{name}: error {found.error:.3f}", color, points, color == 1, ends, texts))
    confidence = Axis("confidence", tick, limits=(0.0, 1.0))
    return Chart("Reliability", confidence, Axis("accuracy", tick, limits=(0.0, 1.0)), series, square=True)
