"""Where lines of a report lie."""

import pytest

from inpaint.evaluate.report import Axis, Chart, Line, ParallelCoordinates


def test_lines_of_a_chart_share_its_bounds() -> None:
    low, high = Line("low", [(0, 1.0), (100, 0.5)]), Line("high", [(0, 2.0)], is_strong=True)
    chart = Chart(title="loss", lines=[low, high])
    assert chart.bounds == (0, 100, 0.5, 2.0)
    assert chart.points(low, 200, 30) == "0.0,20.0 200.0,30.0" and chart.points(high, 200, 30) == "0.0,0.0"


def test_a_line_goes_through_the_axes_at_its_own_values() -> None:
    rates, words = Axis("rate", [1e-4, 1e-3, 1e-2], log=True), Axis("schedule", ["linear", "cosine", "linear"])
    ranks = Axis("rank", [4, 4, 4])
    assert rates.heights(100) == pytest.approx([100.0, 50.0, 0.0]) and rates.ends == (1e-4, 1e-2)
    assert words.heights(100) == [0.0, 100.0, 0.0] and words.ends == ("cosine", "linear")
    lines = ParallelCoordinates(title="settings", axes=[rates, words, ranks], strongest=0).lines(400, 100)
    assert lines == [
        "0.0,100.0 200.0,0.0 400.0,100.0",
        "0.0,50.0 200.0,100.0 400.0,100.0",
        "0.0,0.0 200.0,0.0 400.0,100.0",
    ]
