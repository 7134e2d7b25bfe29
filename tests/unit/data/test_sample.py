"""One sample: the same geometry for image, input and hole; everything keyed by position; prompts as formatted."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inpaint.data.holes import OwnMask, cover
from inpaint.data.rows import Row
from inpaint.data.sample import Crop, ReadSettings, crop_size, make_sample, text_of
from inpaint.errors import BadRow, InpaintError
from tests.unit.data import images

FILES = {"root": "", "image": "a.png", "hole": "m.png", "width": 40, "height": 30, "digest": "0" * 64}
ROW = Row(id="a", prompt="a jar", category="COS", label="jars", **FILES)


def plain(height: int, width: int | None = None, **settings) -> ReadSettings:
    return ReadSettings(height=height, width=width or height, hole=OwnMask(), caption_dropout=0.0, **settings)


def marked(width: int, height: int) -> dict[str, bytes]:
    """The hole is drawn into the image in white, so that a common geometry keeps them together."""
    mask = images.mask(width, height)
    image = Image.composite(Image.new("RGB", (width, height), "white"), Image.new("RGB", (width, height)), mask)
    return {"image": images.encoded(image), "input": images.encoded(image), "hole": images.encoded(mask)}


@settings(deadline=None, max_examples=50)
@given(
    width=st.integers(10, 90),
    height=st.integers(10, 90),
    crop=st.sampled_from(Crop),
    flip=st.sampled_from([0.0, 1.0]),
    shape=st.sampled_from([(32, 32), (24, 40), (48, 16)]),
    position=st.integers(0, 10**9),
)
def test_image_input_and_hole_share_their_geometry(width, height, crop, flip, shape, position):
    chosen = plain(*shape, crop=crop, flip_probability=flip)
    sample = make_sample(ROW, marked(width, height), chosen, seed=0, position=position)
    assert sample["image"].shape == sample["input"].shape == (*shape, 3)
    assert sample["hole"].shape == shape and sample["hole"].max() >= 128 and sample["hole"].min() < 255
    assert np.array_equal(sample["image"], sample["input"])
    white = sample["image"][..., 0].astype(int) >= 128
    # The hole covers every pixel that any of it falls to, so it may be wider, by one pixel along its edges.
    assert (white & (sample["hole"] < 128)).mean() < 0.03
    assert (white != (sample["hole"] >= 128)).mean() < 0.1


def test_a_sample_is_a_function_of_seed_and_position():
    chosen = ReadSettings(height=32, width=32, crop=Crop.RANDOM, flip_probability=0.5)
    files = {"image": images.encoded(images.picture(60, 40))}

    def drawn(seed, positions):
        samples = [make_sample(ROW, files, chosen, seed, p) for p in positions]
        return [sample["image"].tobytes() + sample["hole"].tobytes() for sample in samples]

    assert drawn(1, range(20)) == drawn(1, range(20))
    assert drawn(1, reversed(range(20))) == drawn(1, range(20))[::-1]
    assert drawn(1, range(20)) != drawn(2, range(20))
    assert len(set(drawn(1, range(20)))) > 10


def test_a_flip_mirrors():
    files = {"image": images.encoded(images.picture(32, 32)), "hole": images.encoded(images.mask(32, 32))}
    one = make_sample(ROW, files, plain(32), 0, 0)
    other = make_sample(ROW, files, plain(32, flip_probability=1.0), 0, 0)
    for name in ("image", "input", "hole"):
        assert np.array_equal(one[name][:, ::-1], other[name])


def test_the_short_side_becomes_the_resolution_and_the_centre_is_kept():
    files = {"image": images.encoded(images.picture(128, 64))}
    image = make_sample(ROW, files, plain(64), 0, 0)["image"]
    assert np.abs(image.astype(int) - np.asarray(images.picture(128, 64))[:, 32:96].astype(int)).max() <= 1


def resized(image: Image.Image, small: int) -> np.ndarray:
    """As a sample shows it, in the numbers 0 .. 255."""
    return make_sample(ROW, {"image": images.encoded(image)}, plain(small), 0, 0)["image"].astype(float)


@pytest.mark.parametrize("side", [24, 40, 64, 65, 100, 127, 128, 200, 255, 256, 400])
def test_resizing_shifts_nothing_and_changes_no_edge(side):
    """A ramp becomes the ramp of the new pixels' middles, up to the border, whether larger, smaller or far smaller."""
    ramp = np.rint(40 + 170 * (np.arange(side) + 0.5) / side).astype(np.uint8)
    found = resized(Image.fromarray(np.repeat(np.tile(ramp, (side, 1))[..., None], 3, axis=2)), 64)
    expected = 40 + 170 * (np.arange(64) + 0.5) / 64
    assert np.abs(found - expected[None, :, None]).max() <= max(1.0, 170 / side)  # the border has no neighbour
    assert np.abs((found - expected[None, :, None])[:, 2:-2].mean()) < 0.5  # half a pixel would be 1.3
    turned = resized(Image.fromarray(np.repeat(np.tile(ramp[:, None], (1, side))[..., None], 3, axis=2)), 64)
    assert np.array_equal(turned, found.transpose(1, 0, 2))
    assert (resized(Image.new("RGB", (side, side), (200, 3, 90)), 64) == (200, 3, 90)).all()


@pytest.mark.parametrize("side", [96, 160, 250, 300])
def test_what_is_finer_than_the_new_pixels_becomes_grey(side):
    """Stripes of one pixel would come back as wider ones, where pixels were picked and not averaged."""
    stripes = np.zeros((side, side, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    found = resized(Image.fromarray(stripes), 64)
    assert abs(found.mean() - 127.5) < 4 and found.std() < 0.35 * 127.5
    if side >= 160:
        assert found.std() < 0.25 * 127.5


@pytest.mark.parametrize("side", [48, 70, 100, 128, 200, 250])
def test_photos_are_resized_as_pillow_would(side):
    """Detail at every scale, weaker where finer. Pixels that are picked are 6 to 14 dB further away."""
    rng, layers = np.random.default_rng(side), np.zeros((side, side, 3))
    for cells in (4, side // 6, side // 2):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layers += np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC)) / cells
    photo = Image.fromarray((255 * layers / layers.max()).astype(np.uint8))
    wanted = np.asarray(photo.resize((64, 64), Image.Resampling.LANCZOS)).astype(float)

    def psnr(found: np.ndarray) -> float:
        return 10 * np.log10(255**2 / np.square(found - wanted).mean())

    picked = np.asarray(photo.resize((64, 64), Image.Resampling.NEAREST)).astype(float)
    assert psnr(resized(photo, 64)) > max(45, psnr(picked) + 5)


def test_images_of_the_samples_own_size_keep_every_number():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(resized(Image.fromarray(noise), 64), noise)
    grey = Image.fromarray(noise[..., 0])
    assert np.array_equal(resized(grey, 64), np.repeat(noise[..., :1], 3, axis=2))
    sixteen = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    assert np.array_equal(resized(sixteen, 64), np.repeat(noise[..., :1], 3, axis=2))


def test_a_file_that_became_smaller_since_is_read_as_it_is():
    files = files_of(np.pad(np.ones((4, 4), dtype=bool), ((0, 200), (700, 0))))
    sample = make_sample(ROW, {**files, "image": images.encoded(images.picture(3, 2))}, plain(32), 0, 0)
    assert sample["image"].shape == (32, 32, 3)


def files_of(mask: np.ndarray) -> dict[str, bytes]:
    """A mask with its picture: white where the hole is."""
    mask = mask.astype(np.uint8) * 255
    return {
        "image": images.encoded(Image.fromarray(mask).convert("RGB")),
        "hole": images.encoded(Image.fromarray(mask)),
    }


@pytest.mark.parametrize("crop", Crop)
@pytest.mark.parametrize("shape", [(24, 200), (200, 24)])
def test_crops_hold_the_whole_hole_where_it_fits(crop, shape):
    """Wherever it lies: the crop goes there, and all of it is painted and no more."""
    seen = set()
    for position in range(40):
        mask = np.zeros(shape, dtype=bool)
        along = np.random.default_rng(position).integers(0, 190)
        (mask if shape[0] == 24 else mask.T)[5:9, along : along + 7] = True
        hole = make_sample(ROW, files_of(mask), plain(24, crop=crop), 0, position)["hole"]
        assert (hole >= 128).sum() == 28 and set(np.unique(hole)) == {0, 255}
        seen.add(int(np.flatnonzero(hole.any(axis=0 if shape[0] == 24 else 1))[0]))
    assert len(seen) > 3


def test_a_hole_that_no_crop_holds_is_cut_never_lost_and_never_the_whole_image():
    wide = np.zeros((24, 200), dtype=bool)
    wide[8:12, 30:180] = True  # the centre shows as much of it as any other place
    hole = make_sample(ROW, files_of(wide), plain(24), 0, 0)["hole"]
    assert (hole >= 128).sum() == 4 * 24
    apart = np.zeros((24, 200), dtype=bool)
    apart[3, 2], apart[4:6, 190:195] = True, True  # nothing of it near the centre
    for crop in Crop:
        hole = make_sample(ROW, files_of(apart), plain(24, crop=crop), 0, 7)["hole"]
        assert (hole >= 128).sum() == 10


@pytest.mark.parametrize("crop", Crop)
@pytest.mark.parametrize("shape", [(24, 200), (200, 24)])
def test_of_a_background_the_crop_shows_what_lies_before_it(crop, shape):
    for position in range(40):
        mask = np.ones(shape, dtype=bool)
        along = np.random.default_rng(position).integers(0, 190)
        (mask if shape[0] == 24 else mask.T)[5:9, along : along + 7] = False
        hole = make_sample(ROW, files_of(mask), plain(24, crop=crop), 0, position)["hole"]
        assert (hole < 128).sum() == 28


def test_a_mask_that_became_empty_since_is_named():
    with pytest.raises(BadRow, match="no pixel is white"):
        make_sample(ROW, files_of(np.zeros((24, 24), dtype=bool)), plain(24), 0, 0)


@pytest.mark.parametrize("size", [2048, 1530])
def test_a_line_of_one_pixel_stays_a_hole_when_the_image_becomes_small(size):
    mask = np.zeros((size, size), dtype=bool)
    mask[777, 100:1100] = True
    hole = make_sample(ROW, files_of(mask), plain(512), 0, 0)["hole"]
    rows, columns = np.nonzero(hole)
    assert set(rows) == {777 * 512 // size} and set(np.unique(hole)) == {0, 255}
    assert len(columns) == len(range(100 * 512 // size, 1099 * 512 // size + 1))


@settings(deadline=None)
@given(size=st.integers(1, 90), small=st.integers(1, 60), place=st.floats(0, 0.999))
def test_no_pixel_of_a_mask_is_lost(size, small, place):
    mask = np.zeros((size, 3), dtype=bool)
    mask[int(place * size), 1] = True
    found = cover(mask, (small, 3))
    rows, columns = np.nonzero(found)
    assert set(columns) == {1} and len(rows) in (max(1, small // size), -(-small // size))
    assert np.abs((rows + 0.5) / small - (int(place * size) + 0.5) / size).max() <= max(0.5 / small, 0.5 / size) + 1e-9


@settings(deadline=None)
@given(shape=st.tuples(st.integers(1, 20), st.integers(1, 20)), times=st.integers(1, 6), seed=st.integers(0, 1000))
def test_a_pixel_that_covers_any_of_the_mask_is_hole_as_in_painting(shape, times, seed):
    mask = np.random.default_rng(seed).random((shape[0] * times, shape[1] * times)) < 0.1
    box = Image.fromarray(mask.astype(np.float32)).resize(shape[::-1], Image.Resampling.BOX)
    assert np.array_equal(cover(mask, shape), np.asarray(box) > 0)


def test_the_largest_crop_of_an_aspect():
    assert crop_size(200, 100, aspect=1.0) == (100, 100)
    assert crop_size(200, 100, aspect=0.25) == (200, 50)
    assert crop_size(100, 200, aspect=0.75) == (100, 75)


def test_without_a_mask_the_hole_is_all_but_a_centre_crop():
    sample = make_sample(ROW, {"image": images.encoded(images.picture())}, plain(32), 0, 5)
    assert sample["hole"][16, 16] == 0 and sample["hole"][0, 0] == 255


def test_exif_turns_image_and_mask_together():
    upright = {"image": images.encoded(images.picture()), "hole": images.encoded(images.mask())}
    turned = {
        "image": images.with_orientation(images.picture().transpose(Image.Transpose.ROTATE_90), images.ROTATED),
        "hole": images.with_orientation(images.mask().transpose(Image.Transpose.ROTATE_90), images.ROTATED),
    }
    chosen = plain(24)
    one, other = make_sample(ROW, upright, chosen, 0, 0), make_sample(ROW, turned, chosen, 0, 0)
    assert np.array_equal(one["image"], other["image"]) and np.array_equal(one["hole"], other["hole"])


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_sample_tells_where_its_crop_lies_in_the_resized_and_mirrored_image(flip):
    """As diffusers' SDXL scripts do it: resize, mirror, crop; the crop's corner is counted then."""
    row = replace(ROW, width=200, height=100)
    image, chosen = images.picture(200, 100), plain(64, crop=Crop.RANDOM, flip_probability=flip)
    resized = image.resize((128, 64))
    whole = np.asarray(resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else resized)
    lefts = set()
    for position in range(4):
        sample = make_sample(row, {"image": images.encoded(image)}, chosen, 0, position)
        (top, left), size = sample["crop_top_left"], sample["original_size"]
        lefts.add(left)
        assert size == (100, 200) and top == 0
        difference = whole[:, left : left + 64].astype(int) - sample["image"]
        assert np.abs(difference).max() <= 4
    assert len(lefts) > 1
    tall = make_sample(
        replace(ROW, width=60, height=120), {"image": images.encoded(images.picture(60, 120))}, plain(24), 0, 0
    )
    assert (tall["original_size"], tall["crop_top_left"]) == ((120, 60), (12, 0))


def test_prompts_are_formatted():
    chosen = plain(32, prompt_format="{token} background, {prompt}", tokens={"COS": "<cos>"})
    assert text_of(ROW, chosen, 0, 0) == ("<cos> background, a jar", "jars")


def test_a_tenth_of_the_captions_is_dropped_and_the_label_with_them():
    texts = [text_of(ROW, ReadSettings(height=32, width=32), 0, position) for position in range(3000)]
    assert 0.08 < np.mean([text == ("", "") for text in texts]) < 0.12
    assert set(texts) == {("", ""), ("a jar", "jars")}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"height": 60}, "height 60 is not a positive multiple of 8"),
        ({"width": 0}, "width 0"),
        ({"flip_probability": 1.5}, "flip_probability 1.5"),
        ({"prompt_format": "{colour} {prompt}"}, "colour"),
        ({"prompt_format": "{prompt"}, "prompt_format"),
        ({"prompt_format": "{} {prompt}"}, "known fields"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(InpaintError, match=message):
        ReadSettings(**{"height": 64, "width": 64, **wrong})


def test_a_category_without_a_token_is_refused():
    chosen = plain(64, prompt_format="{token}, {prompt}", tokens={"COS": "<cos>"})
    chosen.check_categories(["COS"])
    with pytest.raises(InpaintError, match="'FOOD' has no token"):
        chosen.check_categories(["FOOD"])
    with pytest.raises(InpaintError, match="some rows have none"):
        chosen.check_categories([None])
