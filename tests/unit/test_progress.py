"""A bar says how long the rest will last, from what was done since it began to be done."""

from types import SimpleNamespace

import pytest

from inpaint.progress import ProgressBar


@pytest.mark.parametrize(
    ("done", "shown", "left"),
    [
        pytest.param(0, [(60, 10), (70, 20), (80, 30)], "70 s left", id="a start of a minute is no work"),
        pytest.param(500, [(60, 510), (70, 520), (80, 530)], "470 s left", id="nor is what an earlier run did"),
        pytest.param(0, [(5, 500), (15, 510), (25, 520)], "480 s left", id="which may be told late"),
        pytest.param(0, [(10, 50), (20, 60), (80, 40), (90, 50)], "200 s left", id="started again, from less"),
        pytest.param(0, [(60, 10)], "ETA unknown", id="one figure is no speed"),
        pytest.param(0, [(60, 10), (70, 100)], "0 s left", id="done"),
    ],
)
def test_the_time_that_is_left_is_of_the_work_alone(done, shown, left, capsys) -> None:
    clock, total = SimpleNamespace(now=0.0), 1000 if done or shown[0][1] == 500 else 100
    with ProgressBar("working", done=done, clock=lambda: clock.now) as bar:
        for at, count in shown:
            clock.now = at
            bar.show(count, total)
    assert capsys.readouterr().err.splitlines()[-1].endswith(left)
