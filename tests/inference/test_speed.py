"""Times: forms take turns, and the median and the quartiles of the turns are told."""

import pytest

from finetune.inference import speed


def test_forms_take_turns_and_a_time_is_the_median_per_image(monkeypatch):
    now, called = 0.0, []
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now)

    def call(name, seconds):
        nonlocal now
        called.append(name)
        now += seconds[min(called.count(name), len(seconds)) - 1]

    slow = [1.0, 0.5, *(0.2, 0.4, 0.6, 0.8, 9.0)]  # two to warm up
    times = speed.in_turns(
        {"slow": lambda: call("slow", slow), "fast": lambda: call("fast", [0.04])}, images=4, turns=5
    )
    assert called[4:] == ["slow", "fast", "fast", "fast"] * 5, "the fast one for a tenth of a second in each turn"
    assert times["slow"].median == pytest.approx(150)
    assert (times["slow"].low, times["slow"].high) == pytest.approx((100, 200))
    assert times["slow"].images_per_second == pytest.approx(1000 / 150)
    assert times["fast"].median == pytest.approx(10)
