"""One sample: the same geometry for image, input and hole; everything keyed by position; prompts as formatted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inpaint.data.manifest import Row
from inpaint.data.sample import Crop, ReadSettings, RowBytes, make_sample, prompt_of
from inpaint.errors import InpaintError
from tests.unit.data import images

ROW = Row(id="a", image="a.png", hole="m.png", prompt="a jar", category="COS", width=40, height=30, digest="")
PLAIN = {"dilate_max": 0.0, "feather_max": 0.0, "full_hole_probability": 0.0, "caption_dropout": 0.0}


def marked(width: int, height: int) -> RowBytes:
    """The hole is drawn into the image in white, so that a common geometry keeps them together."""
    mask = images.mask(width, height)
    image = Image.composite(Image.new("RGB", (width, height), "white"), Image.new("RGB", (width, height)), mask)
    return RowBytes(image=images.encoded(image), input=images.encoded(image), hole=images.encoded(mask))


@settings(deadline=None, max_examples=50)
@given(
    width=st.integers(10, 90),
    height=st.integers(10, 90),
    crop=st.sampled_from(Crop),
    flip=st.sampled_from([0.0, 1.0]),
    position=st.integers(0, 10**9),
)
def test_image_input_and_hole_share_their_geometry(width, height, crop, flip, position):
    chosen = ReadSettings(resolution=32, crop=crop, flip_probability=flip, **PLAIN)
    sample = make_sample(ROW, marked(width, height), chosen, seed=0, position=position)
    assert sample["image"].shape == sample["input"].shape == (32, 32, 3)
    assert sample["hole"].shape == (32, 32) and sample["hole"].max() >= 128
    assert np.array_equal(sample["image"], sample["input"])
    if sample["hole"].min() == 255:  # no crop showed the hole
        return
    white = sample["image"][..., 0].astype(int) >= 128
    assert (white != (sample["hole"] >= 128)).mean() < 0.05


def test_a_sample_is_a_function_of_seed_and_position():
    chosen = ReadSettings(resolution=32, crop=Crop.RANDOM, flip_probability=0.5)

    def holes(seed, positions):
        return [make_sample(ROW, marked(60, 40), chosen, seed, p)["hole"].tobytes() for p in positions]

    assert holes(1, range(20)) == holes(1, range(20))
    assert holes(1, reversed(range(20))) == holes(1, range(20))[::-1]
    assert holes(1, range(20)) != holes(2, range(20))
    assert len(set(holes(1, range(20)))) > 10


def test_a_flip_mirrors():
    files = RowBytes(image=images.encoded(images.picture(32, 32)), hole=images.encoded(images.mask(32, 32)))
    one = make_sample(ROW, files, ReadSettings(resolution=32, **PLAIN), 0, 0)
    other = make_sample(ROW, files, ReadSettings(resolution=32, flip_probability=1.0, **PLAIN), 0, 0)
    for name in ("image", "input", "hole"):
        assert np.array_equal(one[name][:, ::-1], other[name])


def test_the_short_side_becomes_the_resolution_and_the_centre_is_kept():
    files = RowBytes(image=images.encoded(images.picture(128, 64)))
    image = make_sample(ROW, files, ReadSettings(resolution=64, **PLAIN), 0, 0)["image"]
    assert np.abs(image.astype(int) - np.asarray(images.picture(128, 64))[:, 32:96].astype(int)).max() <= 1


def test_random_crops_look_for_the_hole_and_fall_back_to_the_whole_image():
    mask = np.zeros((20, 200), dtype=np.uint8)
    mask[:, :3] = 255
    files = RowBytes(image=images.encoded(images.picture(200, 20)), hole=images.encoded(Image.fromarray(mask)))
    chosen = ReadSettings(resolution=16, crop=Crop.RANDOM, **PLAIN)
    holes = [make_sample(ROW, files, chosen, 0, position)["hole"] for position in range(60)]
    full = sum(bool((hole == 255).all()) for hole in holes)
    assert all(hole.max() >= 128 for hole in holes)
    assert 0 < full < 60
    centre = make_sample(ROW, files, ReadSettings(resolution=16, **PLAIN), 0, 0)
    assert (centre["hole"] == 255).all()


def test_without_a_mask_the_hole_is_all_but_a_centre_crop():
    sample = make_sample(
        ROW, RowBytes(image=images.encoded(images.picture())), ReadSettings(resolution=32, **PLAIN), 0, 5
    )
    assert sample["hole"][16, 16] == 0 and sample["hole"][0, 0] == 255


def test_exif_turns_image_and_mask_together():
    upright = RowBytes(image=images.encoded(images.picture()), hole=images.encoded(images.mask()))
    turned = RowBytes(
        image=images.with_orientation(images.picture().transpose(Image.Transpose.ROTATE_90), images.ROTATED),
        hole=images.with_orientation(images.mask().transpose(Image.Transpose.ROTATE_90), images.ROTATED),
    )
    chosen = ReadSettings(resolution=24, **PLAIN)
    one, other = make_sample(ROW, upright, chosen, 0, 0), make_sample(ROW, turned, chosen, 0, 0)
    assert np.array_equal(one["image"], other["image"]) and np.array_equal(one["hole"], other["hole"])


def test_prompts_are_formatted():
    chosen = ReadSettings(
        resolution=32, prompt_format="{token} background, {prompt}", tokens={"COS": "<cos>"}, caption_dropout=0.0
    )
    assert prompt_of(ROW, chosen, 0, 0) == "<cos> background, a jar"


def test_a_tenth_of_the_captions_is_dropped():
    dropped = [prompt_of(ROW, ReadSettings(resolution=32), 0, position) == "" for position in range(3000)]
    assert 0.08 < np.mean(dropped) < 0.12


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"resolution": 60}, "multiple of 8"),
        ({"flip_probability": 1.5}, "flip_probability 1.5"),
        ({"dilate_max": -0.1}, "dilate_max -0.1"),
        ({"prompt_format": "{colour} {prompt}"}, "colour"),
        ({"prompt_format": "{prompt"}, "prompt_format"),
        ({"prompt_format": "{} {prompt}"}, "known fields"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(InpaintError, match=message):
        ReadSettings(**{"resolution": 64, **wrong})


def test_a_category_without_a_token_is_refused():
    chosen = ReadSettings(resolution=64, prompt_format="{token}, {prompt}", tokens={"COS": "<cos>"})
    chosen.check_categories(["COS"])
    with pytest.raises(InpaintError, match="'FOOD' has no token"):
        chosen.check_categories(["FOOD"])
    with pytest.raises(InpaintError, match="some rows have none"):
        chosen.check_categories([None])
