"""CLIPSeg: heat maps become products."""

from types import SimpleNamespace

import numpy as np
import pytest

from inpaint.errors import InpaintError
from inpaint.vision.clipseg import ClipSegFinder
from inpaint.vision.finder import MOST_FOUND, FindQuery
from inpaint.vision.finders import FinderSettings, load_finder


def heated(monkeypatch, **heat: np.ndarray) -> ClipSegFinder:
    """A finder that has these heat maps, 8 x 8."""
    finder = ClipSegFinder(model=SimpleNamespace(), processor=None, tokenizer=None)
    monkeypatch.setattr(ClipSegFinder, "heat", lambda self, images, words: np.stack([[heat[w] for w in words]]))
    return finder


def hot(*places: tuple[slice, slice, float]) -> np.ndarray:
    heat = np.full((8, 8), 0.05, np.float32)
    for rows, columns, value in places:
        heat[rows, columns] = value
    return heat


IMAGE = np.zeros((8, 8, 3), np.uint8)
TOP, LEFT, RIGHT = slice(0, 3), slice(0, 3), slice(5, 8)


def test_each_connected_hot_piece_is_a_product(monkeypatch) -> None:
    finder = heated(monkeypatch, bag=hot((TOP, LEFT, 0.6), (TOP, RIGHT, 0.9)))
    (findings,) = finder.find([IMAGE], FindQuery.parse(["bag"]))
    assert [(one.box, round(one.score, 3)) for one in findings.found] == [((5, 0, 8, 3), 0.9), ((0, 0, 3, 3), 0.6)]
    assert [int(one.mask.sum()) for one in findings.found] == [9, 9]
    assert findings.mask is not None and int(findings.mask.sum()) == 18


def test_synonyms_are_one_product(monkeypatch) -> None:
    finder = heated(monkeypatch, bag=hot((TOP, LEFT, 0.6)), purse=hot((TOP, slice(2, 5), 0.8)))
    (findings,) = finder.find([IMAGE], FindQuery.parse(["bag|purse"]))
    (one,) = findings.found
    assert (one.product, one.box) == ("bag", (0, 0, 5, 3))


def test_a_place_is_the_hottest_classs_and_each_class_has_its_threshold(monkeypatch) -> None:
    finder = heated(monkeypatch, bag=hot((TOP, LEFT, 0.6)), shoe=hot((TOP, LEFT, 0.7)))
    (findings,) = finder.find([IMAGE], FindQuery.parse(["bag", "shoe"]))
    assert [one.product for one in findings.found] == ["shoe"]
    (findings,) = finder.find([IMAGE], FindQuery.parse(["bag", "shoe:0.8"]))
    assert [one.product for one in findings.found] == ["bag"]


def test_where_a_negative_is_hotter_is_no_product(monkeypatch) -> None:
    finder = heated(monkeypatch, bag=hot((TOP, LEFT, 0.6), (TOP, RIGHT, 0.5)), toy=hot((TOP, LEFT, 0.7)))
    (findings,) = finder.find([IMAGE], FindQuery.parse(["bag"], ["toy"]))
    assert [one.box for one in findings.found] == [(5, 0, 8, 3)]
    assert findings.overruled == {"bag": "toy"}


def test_nothing_found_is_an_answer_with_the_best_score_seen(monkeypatch) -> None:
    finder = heated(monkeypatch, bag=hot((TOP, LEFT, 0.3)))
    (findings,) = finder.find([IMAGE], FindQuery.parse(["bag"]))
    assert findings.found == () and findings.mask is None
    assert findings.best == pytest.approx({"bag": 0.3})


def test_the_real_class_answers_each_photo_at_its_size_whatever_it_shares_a_batch_with(clipseg, photos) -> None:
    finder = load_finder(FinderSettings(finder=str(clipseg), threshold=0.01))
    query = FindQuery.parse(["red box|wood"])
    together = finder.find(photos, query)
    for photo, findings in zip(photos, together, strict=True):
        assert findings.found and len(findings.found) <= MOST_FOUND
        assert all(one.mask.shape == photo.shape[:2] and one.mask.dtype == bool for one in findings.found)
    (alone,) = finder.find(photos[1:2], query)
    assert alone.best == pytest.approx(together[1].best, abs=1e-5)
    assert finder.find([], query) == []


def test_a_model_that_finds_nothing_by_text_is_refused_by_its_kind(blip) -> None:
    with pytest.raises(InpaintError, match=r"is a blip model; give a Grounding DINO"):
        load_finder(FinderSettings(finder=str(blip)))
