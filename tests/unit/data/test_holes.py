"""Hole changes: sizes relative to the image, never empty, softened on the inside only."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from inpaint.data import holes


def square(size: int, half: int) -> np.ndarray:
    hole = np.zeros((size, size), dtype=np.uint8)
    hole[size // 2 - half : size // 2 + half, size // 2 - half : size // 2 + half] = 255
    return hole


@settings(deadline=None)
@given(
    height=st.integers(8, 64),
    width=st.integers(8, 64),
    seed=st.integers(0, 2**32),
    dilate=st.floats(0, 0.5),
    feather=st.floats(0, 0.5),
    pixels=st.integers(1, 20),
)
def test_a_hole_is_never_emptied(height, width, seed, dilate, feather, pixels):
    rng = np.random.default_rng(seed)
    hole = np.zeros((height, width), dtype=np.uint8)
    hole.flat[rng.integers(0, hole.size, pixels)] = rng.integers(128, 256, pixels)
    found = holes.augment(hole, rng, dilate_max=dilate, feather_max=feather, full_probability=0.1)
    assert found.shape == hole.shape and found.dtype == np.uint8
    assert not holes.is_empty(found)


def test_dilating_grows_by_exactly_the_radius():
    for radius in range(1, 12):
        assert np.array_equal(holes.dilate(square(64, 4), radius), square(64, 4 + radius)), radius


def test_dilating_keeps_grey_values_and_stops_at_the_edge():
    hole = np.zeros((8, 8), dtype=np.uint8)
    hole[0, 0], hole[7, 7] = 100, 200
    found = holes.dilate(hole, 2)
    assert found[2, 2] == 100 and found[5, 5] == 200 and found[3, 3] == 0


def test_a_feather_is_inside_the_hole():
    hole = square(64, 16)
    soft = holes.feather(hole, 5)
    assert (soft[hole == 0] == 0).all()
    assert soft[32, 32] == 255 and 0 < soft[32, 17] < 255
    assert (np.diff(soft[32, 16:24].astype(int)) >= 0).all()


def test_the_edge_of_the_image_is_not_an_edge_of_the_hole():
    assert (holes.feather(np.full((32, 32), 255, dtype=np.uint8), 4) == 255).all()


def test_a_line_too_thin_to_soften_stays():
    hole = np.zeros((32, 32), dtype=np.uint8)
    hole[16] = 255
    assert np.array_equal(holes.feather(hole, 6), hole)


def test_a_quarter_of_the_holes_is_the_whole_image():
    hole = square(16, 3)
    full = 0
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        full += bool((holes.augment(hole, rng, dilate_max=0, feather_max=0, full_probability=0.25) == 255).all())
    assert 0.22 < full / 2000 < 0.28


def test_sizes_are_shares_of_the_image():
    def share(size):
        grown = holes.augment(
            square(size, size // 8), np.random.default_rng(1), dilate_max=0.2, feather_max=0, full_probability=0
        )
        return (grown > 0).mean()

    assert abs(share(64) - share(512)) < 0.03


@settings(deadline=None)
@given(height=st.integers(8, 80), width=st.integers(8, 80), seed=st.integers(0, 1000))
def test_all_but_a_centre_crop_keeps_the_centre(height, width, seed):
    hole = holes.all_but_centre_crop(height, width, np.random.default_rng(seed))
    assert hole[height // 2, width // 2] == 0
    assert hole[0, 0] == hole[-1, -1] == 255 and set(np.unique(hole)) == {0, 255}
    assert 0.05 < (hole == 0).mean() < 0.55
