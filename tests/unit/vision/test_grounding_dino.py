"""Grounding DINO and SAM: boxes of words, masks of boxes."""

import numpy as np
import pytest

from inpaint.errors import InpaintError
from inpaint.vision.finder import FindQuery
from inpaint.vision.finders import FinderSettings, load_finder
from inpaint.vision.grounding_dino import GroundedSamFinder

QUERY = FindQuery.parse(["hand bag|bag", "shoe"])


@pytest.fixture(scope="module")
def finder(grounding_dino, sam) -> GroundedSamFinder:
    return load_finder(FinderSettings(finder=str(grounding_dino), segmenter=str(sam), threshold=0.05))


def test_photos_of_unequal_sizes_are_answered_as_if_each_came_alone(finder, photos) -> None:
    together = finder.find([*photos, photos[0]], QUERY)
    for photo, findings in zip(photos, together, strict=False):
        (alone,) = finder.find([photo], QUERY)
        assert findings.best == pytest.approx(alone.best, abs=1e-5)
        assert [one.box for one in findings.found] == [one.box for one in alone.found] != []
        assert all(one.mask.shape == photo.shape[:2] and one.mask.any() for one in findings.found)
    assert together[-1].best == pytest.approx(together[0].best, abs=1e-5)


def test_what_else_is_asked_for_does_not_change_a_classs_score(finder, photos) -> None:
    (alone,) = finder.find(photos[:1], FindQuery.parse(["shoe"]))
    (beside,) = finder.find(photos[:1], FindQuery.parse(["hand bag", "shoe"], ["red box"]))
    assert beside.best["shoe"] == pytest.approx(alone.best["shoe"], abs=1e-5)
    assert beside.best.keys() == {"hand bag", "shoe"}


def test_a_box_must_be_of_all_tokens_of_a_name_and_the_best_name_counts(finder, photos) -> None:
    ids, spans = finder._tokens(("Hand bag", "bag"))
    assert spans == [(1, 3), (4, 5)] and len(ids) == 7
    pixels = finder.processor(images=photos[0], return_tensors="pt")["pixel_values"]
    _, of_class = finder.boxes(pixels, ("hand bag", "bag"))
    assert of_class.shape[0] == 1 and (of_class >= 0).all() and (of_class <= 1).all()


def test_no_box_is_an_answer_and_so_is_an_empty_batch(finder, photos, monkeypatch) -> None:
    nothing = np.zeros((1, 0, 4)), np.zeros((1, 0))
    monkeypatch.setattr(GroundedSamFinder, "boxes", lambda self, pixels, words: nothing)
    (findings,) = finder.find(photos[:1], QUERY)
    assert findings.found == () and findings.best == {"hand bag": 0.0, "shoe": 0.0}
    assert finder.find([], QUERY) == []


def test_a_mask_that_sam_leaves_empty_is_the_box(finder, photos, monkeypatch) -> None:
    one = np.array([[[0.0, 0.0, 0.5, 0.5]]]), np.array([[0.9]])
    monkeypatch.setattr(GroundedSamFinder, "boxes", lambda self, pixels, words: one)
    empty = [np.zeros(photos[0].shape[:2], bool)]
    monkeypatch.setattr(type(finder.segmenter), "masks", lambda self, image, boxes: empty)
    (findings,) = finder.find(photos[:1], FindQuery.parse(["shoe"]))
    assert findings.mask is not None and findings.mask.sum() == 400 and findings.mask[:20, :20].all()


def test_a_name_without_a_token_is_refused(finder, photos) -> None:
    with pytest.raises(InpaintError, match=r"product \.\.\.: .*write other words"):
        finder.find(photos[:1], FindQuery.parse(["..."]))
