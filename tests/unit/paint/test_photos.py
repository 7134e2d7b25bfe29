"""Photos come back as they came: their own numbers, colour profile and alpha around what was painted."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.colour import PROFILES, profile
from inpaint.paint.photos import Photo, encode_png, write_pictures
from inpaint.serve.http.receipt import Encoding, Receipt, encode

P3 = profile(*PROFILES["display-p3"])
HOLE = np.zeros((24, 32), dtype=bool)
HOLE[4:12, 6:20] = True


def numbers(channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 32, channels), dtype=np.uint8)


def opened(image: Image.Image, form: str = "PNG", **how: Any) -> Photo:
    file = io.BytesIO()
    image.save(file, form, **how)
    return Photo.of(Image.open(file))


@pytest.mark.parametrize("icc", [b"", P3], ids=["plain", "display-p3"])
@pytest.mark.parametrize("channels", [3, 4], ids=["RGB", "RGBA"])
def test_what_is_kept_keeps_its_numbers_and_what_is_painted_its_colour(channels: int, icc: bytes) -> None:
    own = numbers(channels)
    photo = opened(Image.fromarray(own), icc_profile=icc or None)
    picture = photo.image.copy()
    picture[HOLE] = (200, 60, 90)
    whole = photo.painted(picture, HOLE)
    result = np.asarray(whole)
    assert np.array_equal(result[~HOLE], own[~HOLE])
    assert channels == 3 or (result[HOLE][:, 3] == 255).all()
    assert whole.info.get("icc_profile", b"") == icc
    again = Photo.of(Image.open(io.BytesIO(encode_png(whole))))
    assert np.abs(again.image[HOLE].astype(int) - (200, 60, 90)).max() <= 2, "the colour that the model meant"
    assert np.array_equal(result[HOLE][:, :3], picture[HOLE]) == (not icc)


def test_a_photo_of_which_nothing_is_transparent_any_more_has_no_alpha() -> None:
    own = numbers(4)
    own[..., 3] = np.where(HOLE, 0, 255)
    photo = opened(Image.fromarray(own))
    assert np.array_equal(photo.transparent, HOLE) and (photo.image[HOLE] == 255).all()
    assert photo.painted(photo.image, HOLE).mode == "RGB"


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK"])
def test_photos_of_every_mode_come_back(mode: str) -> None:
    image = Image.fromarray(numbers(3)).convert(mode)
    photo = opened(image, "TIFF" if mode == "CMYK" else "PNG")
    result = np.asarray(photo.painted(photo.image, HOLE).convert("RGB"))
    assert np.array_equal(result[~HOLE], photo.own[~HOLE][:, :3])


def test_a_smaller_photo_keeps_profile_and_alpha() -> None:
    small = opened(Image.fromarray(numbers(4)), icc_profile=P3).resized((12, 16))
    assert small.image.shape == (12, 16, 3) and small.own.shape == (12, 16, 4) and small.profile == P3


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_answers_carry_the_profile_and_jpeg_has_no_alpha(form: str) -> None:
    photo = opened(Image.fromarray(numbers(4)), icc_profile=P3)
    receipt = Receipt(base="b", base_revision="r", seed=0, sampling={})
    answer = Image.open(io.BytesIO(encode(photo.painted(photo.image, HOLE), Encoding(format=form), receipt)))
    assert answer.info["icc_profile"] == P3 and answer.mode == ("RGB" if form == "jpeg" else "RGBA")


def test_files_carry_the_profile(tmp_path) -> None:
    photo = opened(Image.fromarray(numbers(3)), icc_profile=P3)
    write_pictures(str(tmp_path / "a.png"), photo, HOLE, photo.image)
    assert Image.open(tmp_path / "a.png").info["icc_profile"] == P3
