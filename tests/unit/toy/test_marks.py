"""Marks: told apart by their detector, and all that differs between cartons."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inpaint.toy.catalogue import render
from inpaint.toy.detectors import ERROR_SEED, balanced_renders, disturbed
from inpaint.toy.marks import COLOUR, MARKS, NO_MARK, SHAPE, MarkDetector, marked, write_photos


@pytest.fixture(scope="module")
def detector() -> MarkDetector:
    return MarkDetector.fit(per_class=4)


def test_a_mark_is_all_that_differs() -> None:
    plain = render(3, 1, shape=SHAPE, colour=COLOUR)
    for mark in MARKS:
        scene = marked(3, 1, mark)
        assert (scene.product == plain.product).all()
        changed = (scene.image != plain.image).any(-1)
        assert 30 < changed.sum() < scene.product.sum() and not changed[~scene.product].any()


def test_marks_are_told_apart_wherever_they_stand_and_nothing_else_is_one(detector: MarkDetector) -> None:
    assert detector.error(per_class=2) == {"missed": 0.0, "wrong": 0.0}
    soft = disturbed(np.stack([marked(5, index, mark).image for index, mark in enumerate(MARKS)]), blur=1.5)
    moved = np.roll(soft, (7, -9), axis=(1, 2))
    assert detector.see(soft) == detector.see(moved) == list(MARKS)
    others = balanced_renders(ERROR_SEED, 16)[1]
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
    flat = np.full((1, 64, 64, 3), 128, np.uint8)
    assert set(detector.see(np.concatenate([others, noise, flat]))) == {NO_MARK}


def test_a_carton_is_nearest_to_cartons_with_its_mark(detector: MarkDetector) -> None:
    first, second = (detector.embed(np.stack([marked(seed, 0, mark).image for mark in MARKS])) for seed in (5, 6))
    unit = [embedded / np.linalg.norm(embedded, axis=1, keepdims=True) for embedded in (first, second)]
    assert ((unit[0] @ unit[1].T).argmax(1) == np.arange(len(MARKS))).all()


def test_photos_show_the_carton_before_plain_backdrops(detector: MarkDetector, tmp_path: Path) -> None:
    write_photos(tmp_path, "red ring", seed=4, count=3)
    photos = [np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("*.png"))]
    assert len({photo[0, 0].tobytes() for photo in photos}) == 3
    mask = np.asarray(Image.open(tmp_path / "masks" / "00.png"))
    assert (photos[0][~mask] == photos[0][0, 0]).all() and 0.05 < mask.mean() < 0.4
