"""The toy world keeps its promises: pure, exact, the same scene at every size."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inpaint.errors import InpaintError
from inpaint.toy.catalogue import (
    BACKGROUND_NAMES,
    CATEGORIES,
    CATEGORY_INIT_WORDS,
    COLOUR_NAMES,
    SHAPE_NAMES,
    Scene,
    render,
    write_catalogue,
)
from inpaint.toy.products import SHAPES


def same(a: Scene, b: Scene) -> bool:
    return bool((a.image == b.image).all() and (a.product == b.product).all()) and a.caption(True) == b.caption(True)


def test_a_scene_is_a_pure_function_of_seed_and_index() -> None:
    first = [render(3, index) for index in range(6)]
    again = [render(3, index) for index in reversed(range(6))][::-1]
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not same(render(3, 0), render(4, 0))
    assert not same(render(3, 0), render(3, 1))


def test_the_world_is_wide_enough_and_every_name_appears() -> None:
    assert len(SHAPE_NAMES) >= 6 and len(COLOUR_NAMES) >= 8 and len(BACKGROUND_NAMES) >= 8
    scenes = [render(0, index) for index in range(150)]
    assert {s.shape for s in scenes} == set(SHAPE_NAMES)
    assert {s.colour for s in scenes} == set(COLOUR_NAMES)
    assert {s.background for s in scenes} == set(BACKGROUND_NAMES)


@pytest.mark.parametrize("size", [64, 96, 128, 250])
def test_a_larger_size_is_the_same_scene_sharper(size: int) -> None:
    for index in range(8):
        small, large = render(1, index), render(1, index, size)
        assert large.image.shape == (size, size, 3) and large.image.dtype == np.uint8
        assert large.product.shape == (size, size) and large.product.dtype == bool
        down = Image.fromarray(large.image).resize((64, 64), Image.Resampling.BOX)
        assert np.abs(np.asarray(down, np.float32) - small.image).mean() < 6.0
        assert abs(large.product.mean() - small.product.mean()) < 0.01


def test_products_are_30_to_55_percent_wide_inside_the_picture_and_near_the_middle() -> None:
    for index in range(100):
        product = render(2, index).product
        rows, columns = np.flatnonzero(product.any(1)), np.flatnonzero(product.any(0))
        assert 0.27 <= len(columns) / 64 <= 0.58
        assert rows[0] > 0 and rows[-1] < 63 and columns[0] > 0 and columns[-1] < 63
        assert abs(columns.mean() - 31.5) < 8 and abs(rows.mean() - 31.5) < 8


@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_kept_pixels_tell_nothing_of_the_background_behind_them(shape: str) -> None:
    scenes = [render(5, 9, shape=shape, background=name) for name in BACKGROUND_NAMES]
    product = scenes[0].product
    assert product.any()
    for scene in scenes[1:]:
        assert (scene.product == product).all()
        assert (scene.image[product] == scenes[0].image[product]).all()


def test_choosing_a_name_changes_nothing_else() -> None:
    scene = render(7, 1)
    other = next(name for name in COLOUR_NAMES if name != scene.colour)
    changed = render(7, 1, colour=other)
    assert (changed.shape, changed.background, changed.colour) == (scene.shape, scene.background, other)
    assert (changed.product == scene.product).all()
    assert (changed.image[:4] == scene.image[:4]).all()


def test_captions_are_exact() -> None:
    orange = render(0, 0, shape="bowl", colour="orange", background="sand")
    assert orange.caption(with_background=True) == "an orange bowl on sand"
    scene = render(0, 0, shape="jar", colour="blue", background="sky")
    assert scene.caption(with_background=True) == "a blue jar on sky"
    assert scene.caption(with_background=False) == "a blue jar"


def test_unknown_names_and_useless_sizes_are_refused_with_the_way_out() -> None:
    with pytest.raises(InpaintError, match="'teapot'.*bottle"):
        render(0, 0, shape="teapot")
    with pytest.raises(InpaintError, match="use 32 or more"):
        render(0, 0, 16)


def test_categories_share_out_all_backgrounds() -> None:
    assert {"CDP_COS", "CDP_FOOD"} <= set(CATEGORIES) == set(CATEGORY_INIT_WORDS)
    assert sorted(name for pair in CATEGORIES.values() for name in pair) == sorted(BACKGROUND_NAMES)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_category_set_shows_own_backgrounds_and_does_not_name_them(tmp_path: Path) -> None:
    rows = read(write_catalogue(tmp_path, seed=1, count=12, categories=("CDP_COS", "CDP_FOOD"), first_index=100))
    assert [row["category"] for row in rows] == ["CDP_COS", "CDP_FOOD"] * 6
    for index, row in enumerate(rows, start=100):
        image = np.asarray(Image.open(tmp_path / row["output"]))
        hole = np.asarray(Image.open(tmp_path / row["mask"]))
        scenes = [render(1, index, background=name) for name in CATEGORIES[row["category"]]]
        assert any((image == scene.image).all() for scene in scenes)
        assert (hole == np.where(scenes[0].product, 0, 255)).all()
        assert row["prompt"] == scenes[0].caption(with_background=False)
        assert row["input"] == ""


def test_without_categories_the_prompt_names_the_background(tmp_path: Path) -> None:
    rows = read(write_catalogue(tmp_path, seed=1, count=6, size=80, categories=None))
    assert [row["prompt"] for row in rows] == [render(1, index).caption(True) for index in range(6)]
    assert Image.open(tmp_path / rows[0]["output"]).size == (80, 80)
    half = read(write_catalogue(tmp_path, seed=1, count=40, categories=None, with_background=0.5))
    assert 8 < sum(" on " in row["prompt"] for row in half) < 32


def test_a_bad_category_or_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InpaintError, match="'CDP_X'.*CDP_COS"):
        write_catalogue(tmp_path, seed=0, count=1, categories=("CDP_X",))
    with pytest.raises(InpaintError, match="with_background"):
        write_catalogue(tmp_path, seed=0, count=1, with_background=1.5)


def test_every_shape_has_a_width_in_the_promised_range() -> None:
    for _, aspect, (narrow, wide) in SHAPES.values():
        assert 0.30 <= narrow <= wide <= 0.55
        assert wide / aspect < 0.85
