"""Captions as tags: the activation tag comes first and stays there, the others move and leave by the sample alone."""

from collections import Counter

import pytest

from inpaint.data.captions import CaptionTags, tags_of
from inpaint.data.rows import Row
from inpaint.data.sample import ReadSettings, text_of
from inpaint.errors import InpaintError

CAPTION = "a bag, gold, leather, on a table"


def told(tags: CaptionTags, position: int, caption: str = CAPTION, dropout: float = 0.0) -> str:
    row = Row(id="a", root="/", image="a.png", prompt=caption, width=8, height=8, digest="0" * 64)
    settings = ReadSettings(height=8, width=8, caption_tags=tags, caption_dropout=dropout)
    return text_of(row, settings, 0, position)[0]


@pytest.mark.parametrize(
    ("caption", "written"),
    [
        ("a bag, gold", "ppz, a bag, gold"),
        ("ppz, a bag", "ppz, a bag"),
        ("PPZ , a bag,, gold,", "ppz, a bag, gold"),
        ("ppz a bag", "ppz, a bag"),
        ("a bag, ppz, gold", "ppz, a bag, gold"),
        ("ppzo, a bag", "ppz, ppzo, a bag"),
        ("", "ppz"),
        ("1,200 beads", "ppz, 1,200 beads"),
    ],
)
def test_the_activation_tag_is_first_and_said_once(caption: str, written: str) -> None:
    assert CaptionTags(activation="ppz").written(caption) == written
    assert told(CaptionTags(activation="ppz"), 0, caption) == written


def test_several_activation_tags_all_stay_in_front() -> None:
    tags = CaptionTags(activation="ppz, studio", shuffle=True)
    drawn = {told(tags, position, "studio, a, b, c, d") for position in range(30)}
    assert len(drawn) > 10 and all(text.startswith("ppz, studio, ") and text.count("studio") == 1 for text in drawn)


def test_tags_are_shuffled_by_the_sample_alone_behind_those_that_are_kept() -> None:
    tags = CaptionTags(activation="ppz", shuffle=True, keep=2)
    drawn = [told(tags, position) for position in range(200)]
    assert drawn == [told(tags, position) for position in range(200)]
    assert all(tags_of(text)[:2] == ["ppz", "a bag"] and len(tags_of(text)) == 5 for text in drawn)
    counts = Counter(drawn)
    assert len(counts) == 6 and min(counts.values()) > 15, "every order, about equally often"


def test_tags_are_left_out_but_for_those_that_are_kept() -> None:
    tags = CaptionTags(activation="ppz", dropout=0.25)
    drawn = [tags_of(told(tags, position)) for position in range(500)]
    assert all(found[0] == "ppz" for found in drawn)
    share = 1 - sum(len(found) - 1 for found in drawn) / (4 * 500)
    assert share == pytest.approx(0.25, abs=0.03)
    assert all(found == sorted(found, key=tags_of(f"ppz, {CAPTION}").index) for found in drawn), "in their order"


def test_a_dropped_caption_has_no_tag_either() -> None:
    drawn = [told(CaptionTags(activation="ppz", shuffle=True), position, dropout=0.3) for position in range(500)]
    assert drawn.count("") / 500 == pytest.approx(0.3, abs=0.06)


def test_without_tags_captions_are_told_as_they_are() -> None:
    assert told(CaptionTags(), 0, " a ,b ") == " a ,b "


@pytest.mark.parametrize("wrong", [{"activation": "a\nb"}, {"keep": -1}, {"dropout": 1.5}])
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(InpaintError, match=next(iter(wrong)).replace("activation", "activation tag")):
        CaptionTags(**wrong)
