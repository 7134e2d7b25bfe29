"""Kept pixels are bit-identical for any image, painting, hole and feather."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from inpaint.paint import paste
from inpaint.paint.crop import resize_hole
from inpaint.paint.paste import GAP, assert_kept, comparison, kept_pixels_changed, paste_back

SIDES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)


@st.composite
def cases(draw):
    height, width = draw(SIDES)
    image = hnp.arrays(np.uint8, (height, width, 3))
    return draw(image), draw(image), draw(hnp.arrays(bool, (height, width))), draw(st.integers(0, 6))


@given(cases())
def test_outside_the_hole_nothing_changes(case):
    original, painted, hole, feather = case
    before = original.copy()
    result = paste_back(original, painted, hole, feather=feather)
    assert np.array_equal(result[~hole], original[~hole])
    assert np.array_equal(original, before)
    assert_kept(original, result, hole)
    if feather == 0:
        assert np.array_equal(result[hole], painted[hole])


def test_a_feather_fades_inside_the_hole_only():
    original = np.zeros((20, 20, 3), dtype=np.uint8)
    painted = np.full_like(original, 200)
    hole = np.zeros((20, 20), dtype=bool)
    hole[:, 5:] = True
    row = paste_back(original, painted, hole, feather=3)[10, :, 0]
    assert row.tolist() == [0] * 5 + [50, 100, 150] + [200] * 12  # the picture's border is no edge


def test_changed_pixels_are_counted():
    original = np.zeros((4, 4, 3), dtype=np.uint8)
    hole = np.eye(4, dtype=bool)
    result = original.copy()
    result[0, 0] = 1
    assert kept_pixels_changed(original, result, hole) == 0
    result[0, 1:] = 1
    with pytest.raises(AssertionError, match="3 kept pixels of 12"):
        assert_kept(original, result, hole)


def test_a_comparison_shows_input_hole_and_result():
    original = np.full((5, 6, 3), 10, dtype=np.uint8)
    result = np.full_like(original, 99)
    hole = np.zeros((5, 6), dtype=bool)
    hole[2, 3] = True
    strip = comparison(original, hole, result)
    assert strip.shape == (5, 3 * 6 + 2 * GAP, 3)
    assert np.array_equal(strip[:, :6], original) and np.array_equal(strip[:, -6:], result)
    middle = strip[:, 6 + GAP : 12 + GAP]
    assert np.array_equal((middle != original).any(axis=-1), hole)


def test_a_picture_with_a_changed_kept_pixel_is_not_handed_on(monkeypatch):
    monkeypatch.setattr(paste, "kept_pixels_changed", lambda *_: 1)
    hole = np.array([[True, False], [False, False]])
    with pytest.raises(AssertionError, match="1 kept pixels of 3 were changed"):
        paste_back(np.zeros((2, 2, 3), np.uint8), np.ones((2, 2, 3), np.uint8), hole)


@example(np.eye(13, dtype=bool), 6, 6)  # pixels on the border between two
@given(hnp.arrays(bool, SIDES), st.integers(1, 24), st.integers(1, 24))
def test_a_resized_hole_loses_nothing(hole, height, width):
    small = resize_hole(hole, (height, width))
    for y, x in np.argwhere(hole):
        rows = slice(y * height // hole.shape[0], -(-(y + 1) * height // hole.shape[0]))
        columns = slice(x * width // hole.shape[1], -(-(x + 1) * width // hole.shape[1]))
        assert small[rows, columns].any()
    assert small.any() == hole.any()
