"""Marks: told apart by their detector, and all that differs between cartons."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inpaint.toy.catalogue import render
from inpaint.toy.marks import COLOUR, MARKS, PLAIN, SHAPE, MarkDetector, marked, write_photos


@pytest.fixture(scope="module")
def detector() -> MarkDetector:
    return MarkDetector.fit(per_class=72)


def test_a_mark_is_all_that_differs() -> None:
    plain = render(3, 1, shape=SHAPE, colour=COLOUR)
    for mark in MARKS:
        scene = marked(3, 1, mark)
        assert (scene.product == plain.product).all()
        changed = (scene.image != plain.image).any(-1)
        assert 30 < changed.sum() < scene.product.sum() and not changed[~scene.product].any()


def test_marks_are_told_apart_and_plain_cartons_from_them(detector: MarkDetector) -> None:
    error = detector.error(per_class=8)
    assert error["wrong"] <= 0.02 and error["missed"] <= 0.15
    seen = detector.see(np.stack([render(5, index, shape=SHAPE).image for index in range(16)]))
    assert not set(seen) & set(MARKS) and PLAIN in seen


def test_photos_show_the_carton_before_plain_backdrops(detector: MarkDetector, tmp_path: Path) -> None:
    write_photos(tmp_path, "red ring", seed=4, count=3)
    photos = [np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("*.png"))]
    assert len({photo[0, 0].tobytes() for photo in photos}) == 3
    mask = np.asarray(Image.open(tmp_path / "masks" / "00.png"))
    assert (photos[0][~mask] == photos[0][0, 0]).all() and 0.05 < mask.mean() < 0.4
