"""Hole recipes: sizes relative to the image, never empty, softened on the inside only."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inpaint.data import holes
from inpaint.data.holes import CentreKept, Feathered, Grown, OwnMask, Panels, Sometimes, WholeImage
from inpaint.data.panels import Grid
from inpaint.errors import InpaintError

grow = Grown(OwnMask()).change
feather = Feathered(OwnMask()).change


def square(size: int, half: int) -> np.ndarray:
    hole = np.zeros((size, size), dtype=np.uint8)
    hole[size // 2 - half : size // 2 + half, size // 2 - half : size // 2 + half] = 255
    return hole


@settings(deadline=None)
@given(
    height=st.integers(8, 64),
    width=st.integers(8, 64),
    seed=st.integers(0, 2**32),
    grown=st.floats(0, 0.5),
    feathered=st.floats(0, 0.5),
    pixels=st.integers(0, 20),
)
def test_no_recipe_draws_an_empty_hole(height, width, seed, grown, feathered, pixels):
    rng = np.random.default_rng(seed)
    own = np.zeros((height, width), dtype=np.uint8)
    own.flat[rng.integers(0, own.size, pixels)] = rng.integers(128, 256, pixels)
    recipe = Sometimes(Feathered(Grown(OwnMask(), most=grown), most=feathered), probability=0.1)
    found = recipe.draw(own if pixels else None, height, width, rng)
    assert found.shape == own.shape and found.dtype == np.uint8
    assert not holes.is_empty(found)


def test_a_change_of_one_recipe_does_not_change_what_the_others_draw():
    def last(**changed):
        most = {"grown": 0.0, "feathered": 0.0, "whole": 0.0, **changed}
        inner = Feathered(Grown(Recorded(), most=most["grown"]), most=most["feathered"])
        Sometimes(inner, probability=most["whole"]).draw(None, 8, 8, np.random.default_rng(3))
        return Recorded.drawn

    class Recorded(OwnMask):
        def draw(self, own, height, width, rng):
            Recorded.drawn = rng.random()
            return np.full((height, width), 255, dtype=np.uint8)

    assert last() == last(grown=0.3) == last(feathered=0.3) == last(whole=1e-9)


def test_what_a_recipe_draws_does_not_depend_on_how_much_the_inner_one_draws():
    def grown(numbers):
        class Inner(OwnMask):
            def draw(self, own, height, width, rng):
                rng.random(numbers)
                return square(64, 4)

        return Grown(Inner(), most=0.4).draw(None, 64, 64, np.random.default_rng(2))

    assert np.array_equal(grown(0), grown(5)) and (grown(0) > 0).sum() > 64


def test_the_own_mask_is_used_as_it_is_and_replaced_where_it_is_missing():
    rng = np.random.default_rng(0)
    assert np.array_equal(OwnMask().draw(square(16, 3), 16, 16, rng), square(16, 3))
    assert np.array_equal(
        OwnMask().draw(None, 16, 32, np.random.default_rng(1)),
        CentreKept().draw(None, 16, 32, np.random.default_rng(1)),
    )
    assert (OwnMask(missing=WholeImage()).draw(None, 4, 6, rng) == 255).all()


def test_a_mask_is_read_only_for_recipes_that_look_at_it():
    assert Sometimes(Grown(Feathered(OwnMask()))).uses_own
    assert Sometimes(CentreKept(), instead=OwnMask()).uses_own
    assert not Sometimes(Grown(Feathered(CentreKept()))).uses_own


def test_a_hole_of_ones_own_need_only_look_like_one():
    class Everything:
        uses_own = True

        def draw(self, own, height, width, rng):
            return np.full((height, width), 255, dtype=np.uint8)

    hole = Sometimes(Grown(Everything()))
    assert hole.uses_own and (hole.draw(None, 8, 12, np.random.default_rng(0)) == 255).all()


def test_recipes_print_what_they_are():
    """A run's settings name its holes, so that a resumed run can be told apart."""
    assert repr(Grown(OwnMask(), 0.1)) == "Grown(hole=OwnMask(missing=CentreKept()), most=0.1)"


@pytest.mark.parametrize(
    "wrong", [lambda: Grown(OwnMask(), -0.1), lambda: Feathered(OwnMask(), 0.6), lambda: Sometimes(OwnMask(), 1.5)]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InpaintError, match="-0.1|0.6|1.5"):
        wrong()


def test_growing_grows_by_exactly_the_radius():
    for radius in range(1, 12):
        assert np.array_equal(grow(square(64, 4), radius), square(64, 4 + radius)), radius


def test_growing_keeps_grey_values_and_stops_at_the_edge():
    hole = np.zeros((8, 8), dtype=np.uint8)
    hole[0, 0], hole[7, 7] = 100, 200
    found = grow(hole, 2)
    assert found[2, 2] == 100 and found[5, 5] == 200 and found[3, 3] == 0


def test_a_feather_is_inside_the_hole():
    hole = square(64, 16)
    soft = feather(hole, 5)
    assert (soft[hole == 0] == 0).all()
    assert soft[32, 32] == 255 and 0 < soft[32, 17] < 255
    assert (np.diff(soft[32, 16:24].astype(int)) >= 0).all()


def test_the_edge_of_the_image_is_not_an_edge_of_the_hole():
    assert (feather(np.full((32, 32), 255, dtype=np.uint8), 4) == 255).all()


def test_a_line_too_thin_to_soften_stays():
    hole = np.zeros((32, 32), dtype=np.uint8)
    hole[16] = 255
    assert np.array_equal(feather(hole, 6), hole)


def test_a_quarter_of_the_holes_is_the_whole_image():
    hole = square(16, 3)
    full = 0
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        full += bool((Sometimes(OwnMask()).draw(hole, 16, 16, rng) == 255).all())
    assert 0.22 < full / 2000 < 0.28


def test_sizes_are_shares_of_the_image():
    def share(size):
        own = square(size, size // 8)
        grown = Grown(OwnMask(), most=0.2).draw(own, size, size, np.random.default_rng(1))
        return (grown > 0).mean()

    assert abs(share(64) - share(512)) < 0.03


@settings(deadline=None)
@given(height=st.integers(8, 80), width=st.integers(8, 80), seed=st.integers(0, 1000))
def test_the_centre_is_kept(height, width, seed):
    hole = CentreKept().draw(None, height, width, np.random.default_rng(seed))
    assert hole[height // 2, width // 2] == 0
    assert hole[0, 0] == hole[-1, -1] == 255 and set(np.unique(hole)) == {0, 255}
    assert 0.05 < (hole == 0).mean() < 0.55


def test_panels_are_painted_whole_one_to_so_many_of_them() -> None:
    # Under other recipes, as they are used.
    image, rng = np.random.default_rng(1).integers(0, 256, (90, 120, 3)).astype(np.uint8), np.random.default_rng(0)
    recipe = Sometimes(Grown(Panels(grid=Grid(2, 3), most=2), most=0.0), 0.3).seeing(image)
    counts = []
    for _ in range(80):
        hole = recipe.draw(None, 90, 120, rng)
        assert hole.shape == (90, 120) and hole.dtype == np.uint8
        panels = [hole[y : y + 45, x : x + 40] for y in (0, 45) for x in (0, 40, 80)]
        assert all(len(np.unique(panel)) == 1 for panel in panels)
        counts.append(sum(panel.max() == 255 for panel in panels))
    assert set(counts) == {1, 2, 6} and 10 < counts.count(6) < 40


def test_a_composite_whose_panels_would_all_be_painted_is_refused() -> None:
    with pytest.raises(InpaintError, match="leave one to be seen"):
        Panels(most=4)
