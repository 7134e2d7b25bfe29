"""Random holes: never empty, never full, of the area that was asked for, and wired into reading."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inpaint.data.holes import HoleKind, RandomShapes
from inpaint.data.rows import Row
from inpaint.data.sample import ReadSettings, make_sample
from inpaint.errors import InpaintError
from inpaint.randomness import generator


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(HoleKind),
    least=st.floats(0.001, 0.9),
    width=st.floats(0.02, 0.3),
    size=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    seed=st.integers(0, 2**32),
)
def test_a_hole_covers_what_was_asked_for(
    kind: HoleKind, least: float, width: float, size: tuple[int, int], seed: int
) -> None:
    most = min(0.999, least + width)
    hole = RandomShapes(kinds=(kind,), areas=((least, most),)).draw(None, *size, np.random.default_rng(seed))
    assert hole.shape == size
    assert set(np.unique(hole)) == {0, 255}, "neither empty nor full"
    covered = np.count_nonzero(hole)
    assert least * hole.size - 1 <= covered <= most * hole.size + 1


@pytest.mark.parametrize("kind", HoleKind)
def test_areas_are_spread_over_the_range(kind: HoleKind) -> None:
    holes = RandomShapes(kinds=(kind,), areas=((0.1, 0.5),))
    shares = [np.mean(holes.draw(None, 48, 48, generator(0, "test", i)) > 0) for i in range(400)]
    quarters, _ = np.histogram(shares, bins=4, range=(0.1, 0.5))
    assert quarters.min() >= 60, f"{quarters} of 400: uniform would be 100 each"


def test_ranges_are_chosen_alike() -> None:
    holes = RandomShapes(areas=((0.01, 0.05), (0.5, 0.6)))
    shares = np.array([np.mean(holes.draw(None, 32, 32, generator(1, "test", i)) > 0) for i in range(300)])
    assert 110 <= np.sum(shares < 0.06) <= 190
    assert np.all((shares < 0.06) | (shares >= 0.49))


def test_shapes_scale_with_the_image() -> None:
    holes = RandomShapes(kinds=(HoleKind.RECTANGLES,), areas=((0.2, 0.21),), most_shapes=1)
    small, large = (holes.draw(None, n, n, generator(2, "test", 0)) > 0 for n in (32, 256))
    rows, columns = (np.flatnonzero(small.any(axis=a)) / 32 for a in (0, 1))
    assert np.flatnonzero(large.any(axis=0))[[0, -1]] / 256 == pytest.approx(rows[[0, -1]], abs=0.1)
    assert np.flatnonzero(large.any(axis=1))[[0, -1]] / 256 == pytest.approx(columns[[0, -1]], abs=0.1)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()


def test_reading_draws_holes_by_seed_and_position_in_place_of_the_rows_own() -> None:
    image, mask = np.zeros((40, 56, 3), np.uint8), np.full((40, 56), 255, np.uint8)
    mask[:20] = 0
    row = Row(id="a", root="", image="a.png", hole="m.png", width=56, height=40, digest="")
    read = ReadSettings(height=32, width=32, hole=RandomShapes(areas=((0.1, 0.2),)))
    files = {"image": png(image), "hole": png(mask)}
    first, again, other = (make_sample(row, files, read, 7, position)["hole"] for position in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert 0.1 <= np.mean(first > 0) <= 0.2


@pytest.mark.parametrize(
    "wrong",
    [{"kinds": ()}, {"areas": ()}, {"areas": ((0.5, 0.2),)}, {"areas": ((0.0, 0.2),)}, {"stroke_width": (0.3, 0.1)}],
)
def test_what_cannot_be_is_refused(wrong: dict) -> None:
    with pytest.raises(InpaintError):
        RandomShapes(**wrong)


def test_shapes_that_cover_everything_are_cut_down_too() -> None:
    """Rarely does one: then there is no edge to begin at."""
    shapes = RandomShapes(kinds=(HoleKind.RECTANGLES,), areas=((0.9, 0.95),))
    holes = [shapes.draw(None, 12, 12, np.random.default_rng(seed)) for seed in range(300)]
    assert all(0.9 * 144 - 1 <= np.count_nonzero(hole) <= 0.95 * 144 + 1 for hole in holes)
