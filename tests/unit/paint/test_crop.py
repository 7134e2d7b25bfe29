"""Windows hold the hole and its padding, lie in the photo, and come back to where they were."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inpaint.paint.crop import LONGEST, Window, pasted, window_of
from inpaint.paint.paste import kept_pixels_changed
from tests.unit.paint.examples import request_with


def box(height: int, width: int, top: int, left: int, high: int, wide: int) -> np.ndarray:
    hole = np.zeros((height, width), dtype=bool)
    hole[top : top + high, left : left + wide] = True
    return hole


def window(top: int, left: int, high: int, wide: int) -> Window:
    return slice(top, top + high), slice(left, left + wide)


@pytest.mark.parametrize(
    ("hole", "padding", "wanted"),
    [
        (box(100, 80, 30, 20, 10, 12), None, window(0, 0, 100, 80)),
        (box(100, 80, 30, 20, 10, 12), 0, window(30, 20, 10, 12)),
        (box(100, 80, 30, 20, 10, 12), 4, window(26, 16, 18, 20)),
        (box(100, 80, 0, 70, 10, 10), 4, window(0, 66, 14, 14)),
        (box(100, 80, 10, 40, 60, 2), 0, window(10, 26, 60, 30)),
        (box(100, 80, 10, 0, 60, 2), 0, window(10, 0, 60, 30)),
        (box(100, 10, 10, 0, 60, 2), 0, window(10, 0, 60, 10)),
        (np.zeros((100, 80), dtype=bool), 4, window(0, 0, 100, 80)),
    ],
)
def test_windows(hole, padding, wanted):
    assert window_of(hole, padding) == wanted


@given(st.data())
def test_a_window_holds_the_padded_hole_inside_the_photo(data):
    height, width = data.draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
    top, left = data.draw(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)))
    high, wide = data.draw(st.tuples(st.integers(1, height - top), st.integers(1, width - left)))
    padding = data.draw(st.integers(0, 70))
    rows, columns = window_of(box(height, width, top, left, high, wide), padding)
    assert rows.start >= 0 and rows.stop <= height
    assert columns.start >= 0 and columns.stop <= width
    assert rows.start <= max(0, top - padding) and rows.stop >= min(height, top + high + padding)
    assert columns.start <= max(0, left - padding) and columns.stop >= min(width, left + wide + padding)
    tall, broad = rows.stop - rows.start, columns.stop - columns.start
    full = tall == height if tall < broad else broad == width
    assert full or max(tall, broad) <= LONGEST * min(tall, broad) + 1


@pytest.mark.parametrize("feather", [0, 4])
def test_what_was_painted_lands_in_the_hole_alone(feather):
    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    hole = box(50, 70, 20, 30, 10, 12)
    request = request_with(image=photo, hole=hole, prompt="", seed=0, padding=3, feather=feather)
    result = pasted(request, window_of(hole, 3), np.ones((32, 32, 3), dtype=np.float32))
    assert kept_pixels_changed(photo, result, hole) == 0
    assert (result[25, 36] == 255).all()
    assert (result[hole] == 255).all() == (feather == 0)
