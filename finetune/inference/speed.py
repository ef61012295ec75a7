"""Time several functions on the same input, in turns, so that other load on the machine slows all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

WARM_UP = 2  # calls before the first that counts
TURN = 0.1  # seconds that a function is called for in its turn, at least


@dataclass(frozen=True)
class Timing:
    """Milliseconds per image over the turns."""

    median: float
    low: float
    """Lower quartile."""
    high: float
    """Upper quartile."""

    @property
    def images_per_second(self) -> float:
        return 1000 / self.median


def in_turns(calls: dict[str, Callable[[], object]], images: int, turns: int) -> dict[str, Timing]:
    """Time each call, which computes so many images, in so many turns; two or more."""
    repeats = {}
    for name, call in calls.items():
        for _ in range(WARM_UP):
            seconds = _seconds(call, 1)
        repeats[name] = max(1, math.ceil(TURN / seconds))
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            found[name].append(1000 * _seconds(call, repeats[name]) / images)
    return {name: _timing(values) for name, values in found.items()}


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _timing(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high)
