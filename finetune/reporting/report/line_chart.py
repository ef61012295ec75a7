"""Line charts as positions in per cent, which the template draws and the page's script reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

MARKERS = 40  # points of a series; more are drawn as a line without markers


@dataclass(frozen=True)
class Axis:
    """An axis: its name and how its values are laid out and written."""

    name: str
    text: Callable[[float], str]
    """A value in words, on the axis and where the reader points at."""
    log: bool = False
    falling: bool = False
    """Large values first."""
    whole: bool = False
    """Ticks at whole numbers alone."""
    limits: tuple[float | None, float | None] = (None, None)
    """The ends of the axis; None: those of the values."""


@dataclass(frozen=True)
class Series:
    """One line."""

    name: str
    color: int
    """Position in the palette."""
    points: Sequence[tuple[float, float | None]]
    """x and y; a point without y interrupts the line."""
    dashed: bool = False
    ends: Sequence[tuple[float, float] | None] = ()
    """The interval of each point's y."""
    texts: Sequence[str] = ()
    """What is shown for each point; empty: its y."""
    guide: bool = False
    """A line to compare with, without values to show."""


@dataclass(frozen=True)
class Mark:
    """A vertical line at a position of the x-axis."""

    x: float
    text: str
    kind: str = "best"
    """`best` or `started`."""


@dataclass(frozen=True)
class Chart:
    """What a chart shows."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    square: bool = False


@dataclass(frozen=True)
class Drawing:
    """Where a chart's parts lie, in per cent of its width from the left and of its height from the bottom."""

    chart: Chart
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[dict[str, Any]]
    """Each series, in the coordinates of an SVG of 100 × 100, whose y begins at the top."""
    marks: list[tuple[float, Mark]]
    stops: list[dict[str, Any]]
    """For each x with values, from left to right: its position, its text and its values."""


def draw(chart: Chart) -> Drawing:
    """Lay out a chart."""
    xs = [x for one in chart.series for x, _ in one.points]
    ys = [y for one in chart.series for _, y in one.points if y is not None]
    ys += [end for one in chart.series for ends in one.ends if ends for end in ends]
    x_ticks, to_x = _scale(chart.x, xs or [0.0], tight=True)
    y_ticks, to_y = _scale(chart.y, ys or [0.0])
    found: dict[float, list[dict[str, Any]]] = {}
    for k, one in enumerate(chart.series):
        for n, (x, y) in enumerate(one.points):
            if y is not None and not one.guide:
                text = one.texts[n] if one.texts else chart.y.text(y)
                found.setdefault(x, []).append({"series": k, "y": to_y(y), "text": text})
    stops = [{"x": to_x(x), "text": f"{chart.x.name} {chart.x.text(x)}", "values": found[x]} for x in found]
    return Drawing(
        chart,
        x_ticks,
        y_ticks,
        [_line(one, to_x, to_y) for one in chart.series],
        [(to_x(mark.x), mark) for mark in chart.marks],
        sorted(stops, key=lambda stop: stop["x"]),
    )


def _line(one: Series, to_x: Callable[[float], float], to_y: Callable[[float], float]) -> dict[str, Any]:
    """A series as an SVG path of its line, positions of its markers, and of its intervals."""
    path, pen = "", "M"
    markers = []
    for x, y in one.points:
        if y is None:
            pen = "M"
            continue
        path += f"{pen}{to_x(x):.2f} {100 - to_y(y):.2f}"
        pen = "L"
        markers.append((round(to_x(x), 2), round(100 - to_y(y), 2)))
    bars = [
        (round(to_x(x), 2), round(100 - to_y(ends[0]), 2), round(100 - to_y(ends[1]), 2))
        for (x, _), ends in zip(one.points, one.ends or [None] * len(one.points), strict=True)
        if ends
    ]
    shown = len(markers) <= MARKERS and not one.guide
    return {"name": one.name, "color": one.color, "dashed": one.dashed, "guide": one.guide,
            "path": path, "markers": markers if shown else [], "bars": bars}  # fmt: skip


def _scale(
    axis: Axis, values: Sequence[float], tight: bool = False
) -> tuple[list[tuple[float, str]], Callable[[float], float]]:
    """The ticks of an axis, each with its text, and the function from a value to its position in per cent.

    A `tight` axis ends at its values, another at ticks.
    """
    to_line = math.log10 if axis.log else float
    low, high = (min(values) if axis.limits[0] is None else axis.limits[0],
                 max(values) if axis.limits[1] is None else axis.limits[1])  # fmt: skip
    if axis.log:
        ticks = [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    else:
        widened = (
            (low, high) if high > low else (low - 0.5, high + 0.5) if axis.whole else (low * 0.9, high * 1.1 + 1e-9)
        )
        ticks = MaxNLocator(5, integer=axis.whole, steps=[1, 2, 2.5, 5, 10]).tick_values(*widened).tolist()
    if not tight:
        low = ticks[0] if axis.limits[0] is None else low
        high = ticks[-1] if axis.limits[1] is None else high
    first, last = to_line(low), to_line(high)
    margin = 0.02 * (last - first) if tight else 0.0
    first, last = first - margin, last + margin
    if last <= first:
        first, last = first - 0.5, last + 0.5

    def position(value: float) -> float:
        part = 100 * (to_line(value) - first) / (last - first)
        return round(100 - part if axis.falling else part, 3)

    kept = [value for value in ticks if -0.01 <= position(value) <= 100.01]
    return [(position(value), axis.text(value)) for value in kept], position
