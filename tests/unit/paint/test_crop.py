"""Windows hold the hole and its padding, lie in the photo, and come back to where they were."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inpaint.paint.crop import LONGEST, Window, filled, pasted, window_of, working_image
from inpaint.paint.paste import kept_pixels_changed
from inpaint.paint.request import PaintRequest
from tests.tiny import base_info
from tests.unit.paint.examples import request_with

BASE = base_info()


def box(height: int, width: int, top: int, left: int, high: int, wide: int) -> np.ndarray:
    hole = np.zeros((height, width), dtype=bool)
    hole[top : top + high, left : left + wide] = True
    return hole


def window(top: int, left: int, high: int, wide: int) -> Window:
    return slice(top, top + high), slice(left, left + wide)


def asked(hole: np.ndarray, padding: int | str | None, size: int | None = None) -> PaintRequest:
    image = np.zeros((*hole.shape, 3), dtype=np.uint8)
    return request_with(image=image, hole=hole, prompt="", seed=0, padding=padding, size=size)


@pytest.mark.parametrize(
    ("hole", "padding", "wanted"),
    [
        (box(100, 80, 30, 20, 10, 12), "whole", window(0, 0, 100, 80)),
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
    assert window_of(BASE, asked(hole, padding)) == wanted


@pytest.mark.parametrize(
    ("hole", "size", "wanted"),
    [
        # As large as it is painted, or smaller: all of it.
        (box(64, 64, 30, 20, 10, 12), None, window(0, 0, 64, 64)),
        (box(200, 10, 30, 2, 10, 6), None, window(0, 0, 200, 10)),
        (box(400, 600, 30, 20, 10, 12), 512, window(0, 0, 400, 600)),
        # No less than the working size, also at the photo's border.
        (box(400, 600, 100, 200, 10, 12), None, window(73, 174, 64, 64)),
        (box(400, 600, 0, 590, 10, 10), None, window(0, 536, 64, 64)),
        # A quarter of the longer side on each side, and no longer than twice its width.
        (box(400, 600, 100, 200, 120, 200), None, window(50, 150, 220, 300)),
        (box(400, 600, 100, 100, 10, 400), None, window(0, 0, 300, 600)),
        # A background is seen whole.
        (~box(400, 600, 150, 200, 100, 200), None, window(0, 0, 400, 600)),
        (np.zeros((400, 600), dtype=bool), None, window(0, 0, 400, 600)),
    ],
)
def test_a_large_photo_is_seen_around_its_hole(hole, size, wanted):
    assert window_of(BASE, asked(hole, None, size)) == wanted


def test_a_hole_of_a_large_photo_keeps_its_detail(tiny_bases):
    photo = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    request = request_with(image=photo, hole=box(400, 600, 100, 200, 10, 12), prompt="", seed=0)
    seen = working_image(tiny_bases["sd9"].info, request)
    assert np.array_equal(seen.image_HW3, photo[seen.window])  # 32 x 32 photo pixels at 32 x 32


@given(st.data())
def test_a_window_holds_the_padded_hole_inside_the_photo(data):
    height, width = data.draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
    top, left = data.draw(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)))
    high, wide = data.draw(st.tuples(st.integers(1, height - top), st.integers(1, width - left)))
    padding = data.draw(st.integers(0, 70))
    rows, columns = window_of(BASE, asked(box(height, width, top, left, high, wide), padding))
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
    result = pasted(request, window_of(BASE, request), np.ones((32, 32, 3), dtype=np.float32))
    assert kept_pixels_changed(photo, result, hole) == 0
    assert (result[25, 36] == 255).all()
    assert (result[hole] == 255).all() == (feather == 0)


def test_a_hole_is_filled_from_around_it():
    image = np.zeros((37, 50, 3), dtype=np.uint8)
    image[:, :25], image[:, 25:] = (200, 10, 60), (20, 90, 250)
    hole = box(37, 50, 8, 4, 20, 42)
    spoilt = np.where(hole[..., None], 255, image)
    result = filled(spoilt, hole).astype(int)
    assert (result[~hole] == image[~hole]).all()
    assert np.abs(result[18, 5] - image[18, 0]).max() < 40 and np.abs(result[18, 44] - image[18, 49]).max() < 40
    steps = np.abs(np.diff(result[18, 4:46], axis=0)).max()
    assert steps < 40, "there is no edge inside"
    assert (filled(image, np.ones((37, 50), dtype=bool)) == image).all()
    flat = np.full((9, 7, 3), 77, dtype=np.uint8)
    assert (filled(np.where(box(9, 7, 2, 2, 5, 3)[..., None], 0, flat), box(9, 7, 2, 2, 5, 3)) == flat).all()
