"""What is asked of finders."""

import pytest

from inpaint.errors import InpaintError
from inpaint.vision.boxes import Claim, settle, whole_pixels
from inpaint.vision.finder import FindQuery, ProductClass


def test_a_class_is_written_as_one_text() -> None:
    assert ProductClass.parse("hand bag| purse|tote:0.4") == ProductClass(
        name="hand bag", synonyms=("purse", "tote"), threshold=0.4
    )
    assert ProductClass.parse("shoe").words == ("shoe",)


@pytest.mark.parametrize("text", ["", "shoe|", "shoe:much", "shoe:1.2", "shoe:0", "|shoe"])
def test_what_is_no_class_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(InpaintError, match=r"product"):
        ProductClass.parse(text)


@pytest.mark.parametrize(("products", "negatives"), [([], []), (["a|b", "B"], []), (["a"], ["A"]), (["a"], [" "])])
def test_a_query_without_products_or_with_a_word_twice_is_refused(products, negatives) -> None:
    with pytest.raises(InpaintError):
        FindQuery.parse(products, negatives)


def test_two_synonyms_boxes_of_one_thing_are_one_and_two_things_are_two() -> None:
    one, again = (Claim(owner="bag", score=s, box=b) for s, b in ((0.9, (0, 0, 10, 10)), (0.8, (1, 0, 10, 10))))
    other = Claim(owner="bag", score=0.5, box=(20, 20, 30, 30))
    assert settle([again, other, one]) == ([one, other], {})


def test_one_thing_that_two_classes_claim_is_the_better_ones() -> None:
    shoe, boot = (Claim(owner=name, score=s, box=(0, 0, 10, 10)) for name, s in (("shoe", 0.4), ("boot", 0.6)))
    assert settle([shoe, boot]) == ([boot], {})


@pytest.mark.parametrize(("score", "stands"), [(0.7, False), (0.3, True)])
def test_a_negative_takes_what_lies_in_it_if_its_score_is_higher(score: float, stands: bool) -> None:
    shoe = Claim(owner="shoe", score=0.5, box=(4, 4, 8, 8))
    poster = Claim(owner="picture of a shoe", score=score, box=(0, 0, 20, 20), negative=True)
    assert settle([shoe, poster]) == (([shoe], {}) if stands else ([], {"shoe": "picture of a shoe"}))


def test_no_box_is_no_claim() -> None:
    assert settle([]) == ([], {})
    assert whole_pixels([-3.5, 1.2, 40.0, 2.1], 10, 20) == (0, 1, 20, 3)
    assert whole_pixels([5.0, 5.0, 5.0, 9.0], 10, 20) is None
    assert whole_pixels([float("nan")] * 4, 10, 20) is None
