"""BLIP writes one line per photo."""

import pytest

from inpaint.errors import InpaintError
from inpaint.vision.captioner import CaptionerSettings, load_captioner


def test_each_photo_has_one_line_whatever_it_shares_a_batch_with(blip, photos) -> None:
    captioner = load_captioner(CaptionerSettings(captioner=str(blip), max_words=4))
    together = captioner.caption(photos)
    assert len(together) == len(photos) and all(text and "\n" not in text for text in together)
    assert [captioner.caption([photo])[0] for photo in photos] == together
    assert captioner.caption([]) == []


def test_captions_begin_as_asked(blip, photos) -> None:
    captioner = load_captioner(CaptionerSettings(captioner=str(blip), max_words=4, begin="a photo of"))
    assert all(text.startswith("a photo of ") for text in captioner.caption(photos))


def test_what_is_no_captioner_is_refused(tmp_path) -> None:
    with pytest.raises(InpaintError, match=r"model .*: .*give a hub id"):
        load_captioner(CaptionerSettings(captioner=str(tmp_path)))
