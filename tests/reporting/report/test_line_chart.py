"""The positions of a chart's parts."""

import pytest

from finetune.reporting.report.line_chart import Axis, Chart, Series, draw


def positions(axis: Axis, values: list[float]) -> list[float]:
    drawing = draw(Chart("", axis, Axis("y", str), [Series("", 0, [(value, 1.0) for value in values])]))
    return [stop["x"] for stop in drawing.stops]


def test_values_lie_in_proportion_and_on_a_logarithmic_axis_in_proportion_of_their_logarithms():
    low, middle, high = positions(Axis("x", str), [1.0, 2.0, 3.0])
    assert 0 <= low < high <= 100
    assert middle == pytest.approx((low + high) / 2)
    first, second, third = positions(Axis("x", str, log=True), [0.01, 0.1, 1.0])
    assert (first, third) == pytest.approx((low, high))
    assert second == pytest.approx((first + third) / 2)


def test_a_falling_axis_begins_with_the_largest_value():
    drawing = draw(Chart("", Axis("x", str, falling=True), Axis("y", str), [Series("", 0, [(1.0, 5.0), (2.0, 6.0)])]))
    assert [stop["values"][0]["text"] for stop in drawing.stops] == ["6.0", "5.0"]
    assert drawing.stops[0]["text"] == "x 2.0"


def test_all_values_lie_within_the_ticks_and_whole_axes_have_whole_ticks():
    points = [(float(k), 0.123 * k) for k in range(1, 4)]
    drawing = draw(Chart("", Axis("epoch", "{:g}".format, whole=True), Axis("y", str), [Series("", 0, points)]))
    assert all(float(text).is_integer() for _, text in drawing.x_ticks)
    assert len(drawing.x_ticks) == 3
    heights = [value["y"] for stop in drawing.stops for value in stop["values"]]
    assert 0 <= min(heights) < max(heights) <= 100
    assert (drawing.y_ticks[0][0], drawing.y_ticks[-1][0]) == (0, 100)


def test_a_single_value_and_a_missing_one_are_drawn():
    drawing = draw(Chart("", Axis("x", str), Axis("y", str), [Series("", 0, [(1.0, 0.0), (2.0, None), (3.0, 0.0)])]))
    assert drawing.lines[0]["path"].count("M") == 2, "the line is interrupted"
    assert len(drawing.stops) == 2
    assert draw(Chart("", Axis("x", str), Axis("y", str), [Series("", 0, [(1.0, 2.0)])])).stops[0]["x"] == 50
