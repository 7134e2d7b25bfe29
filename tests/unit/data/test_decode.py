"""Bytes -> pixels: what is converted, what is refused, and that nothing else comes out of broken files."""

import io
import tracemalloc
from functools import partial

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from benchmarks.colour import PROFILES, SRGB_TO_XYZ, profile, srgb_to_linear
from inpaint.data import decode
from inpaint.data.decode import DEFAULT_LIMITS, FORMATS, Limits, check_hole, load_hole, load_rgb
from inpaint.data.quarantine import Reason
from inpaint.errors import BadRow, InpaintError
from tests.unit.data import images

NEAR = {"PNG": {}, "TIFF": {}, "JPEG": {"quality": 95}, "AVIF": {"quality": 95}, "WEBP": {"lossless": True}}
"""Options with which a format keeps a picture nearly or wholly."""


def rgb(data: bytes, **options) -> np.ndarray:
    return np.asarray(load_rgb(data, "output", DEFAULT_LIMITS, **options)).astype(int)


def hole(data: bytes) -> np.ndarray:
    return np.asarray(load_hole(data, "mask", DEFAULT_LIMITS))


def reason(data: bytes, limits: Limits = DEFAULT_LIMITS) -> str:
    with pytest.raises(BadRow) as caught:
        load_rgb(data, "output", limits)
    assert caught.value.field == "output" and caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("form", FORMATS)
def test_formats_are_read(form):
    assert np.abs(rgb(images.encoded(images.picture(), form, **NEAR[form])) - np.asarray(images.picture())).max() <= 12


def test_cmyk_is_converted():
    red = Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK")
    assert np.abs(rgb(images.encoded(red, "JPEG", quality=95)) - [255, 0, 0]).max() <= 6


def test_grey_is_converted():
    assert (rgb(images.encoded(Image.new("L", (8, 8), 77))) == 77).all()
    assert (rgb(images.encoded(Image.new("1", (8, 8), 1))) == 255).all()


def test_palettes_are_converted():
    data = images.encoded(images.picture().quantize(64))
    assert np.abs(rgb(data) - np.asarray(images.picture())).mean() < 12


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [0, b"\0\xff\0"])
def test_a_transparent_palette_entry_is_white(transparency):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putpixel((0, 0), 1)
    found = rgb(images.encoded(image, transparency=transparency))
    assert found[0, 0].tolist() == [40, 50, 60] and (found[1:] == 255).all()


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_alpha_is_composited_on_white(form):
    values = np.zeros((8, 8, 4), dtype=np.uint8)
    values[:, :4, 3] = 255
    values[:, 4:] = (0, 0, 0, 51)
    found = rgb(images.encoded(Image.fromarray(values), form, **({"lossless": True} if form == "WEBP" else {})))
    assert (found[:, :4] == 0).all() and (found[:, 4:] == 204).all()


def test_16_bit_grey_is_scaled_and_not_clipped():
    values = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, axis=0)
    found = rgb(images.encoded(Image.fromarray(values)))
    assert np.array_equal(found[0, :, 0], np.arange(256))


def test_16_bit_colour_is_scaled_and_not_clipped():
    values = np.linspace(0, 65535, 48).astype(np.uint16).reshape(4, 4, 3)
    assert np.abs(rgb(images.png_16_bit_rgb(values)) - values / 257).max() <= 1


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_image_and_mask_alike(form, orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the transpose that a camera held so writes
    stored = [images.picture(), images.mask()]
    if orientation > 1:
        stored = [image.transpose(Image.Transpose(undo[orientation])) for image in stored]
    options = NEAR[form]
    image, painted = (images.with_orientation(s, orientation, form, **options) for s in stored)
    assert np.abs(rgb(image) - np.asarray(images.picture())).max() <= 16
    assert np.abs(hole(painted).astype(int) - np.asarray(images.mask())).mean() < 6


def test_a_photo_with_previews_is_a_photo():
    """Phones write MPO, a JPEG with several pictures: it is not an animation."""
    preview = images.picture(10, 8)
    data = images.encoded(images.picture(), "MPO", save_all=True, append_images=[preview])
    assert rgb(data).shape == (30, 40, 3)


def test_a_far_larger_jpeg_is_decoded_smaller_but_never_below_twice_the_target():
    data = images.encoded(images.picture(1600, 1200), "JPEG")
    assert rgb(data, target=(128, 128)).shape == (300, 400, 3)
    assert rgb(data, target=(1000, 1000)).shape == (1200, 1600, 3)
    assert rgb(images.encoded(images.picture(160, 120)), target=(16, 16)).shape == (120, 160, 3)


def test_damaged_exif_does_not_cost_a_good_picture():
    data = images.with_orientation(images.picture(), images.ROTATED, "JPEG")
    at = data.index(b"Exif\0\0")
    assert rgb(data[: at + 6] + b"\xff" * 8 + data[at + 14 :]).shape == (30, 40, 3)


@pytest.mark.parametrize("form", FORMATS)
def test_truncated_files_are_refused(form):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = images.encoded(noise, form)
    assert reason(data[: len(data) // 2]) == Reason.TRUNCATED


def test_other_files_are_refused():
    assert reason(b"") == Reason.ZERO_BYTES
    assert reason(b"hello world" * 10) == Reason.NOT_AN_IMAGE
    assert reason(images.encoded(images.picture(), "BMP")) == Reason.WRONG_FORMAT
    assert reason(images.encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")) == Reason.WRONG_FORMAT
    assert reason(images.animated("GIF")) == Reason.WRONG_FORMAT


def test_heic_is_refused_with_the_command_that_converts_it():
    with pytest.raises(BadRow, match="heif-convert") as caught:
        load_rgb(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "output", DEFAULT_LIMITS)
    assert caught.value.reason == Reason.WRONG_FORMAT


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_tiff_is_read_with_8_and_16_bits(compression):
    want = np.asarray(images.picture()).astype(int)
    assert np.array_equal(rgb(images.encoded(images.picture(), "TIFF", compression=compression)), want)
    grey = Image.fromarray((want[..., 0] * 257).astype(np.uint16))
    assert np.array_equal(rgb(images.encoded(grey, "TIFF", compression=compression)), want[..., [0, 0, 0]])


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_is_read_with_16_bits_of_colour(compression):
    want = np.asarray(images.picture()).astype(int)
    file = io.BytesIO()
    tifffile.imwrite(file, (want * 257).astype(np.uint16), photometric="rgb", compression=compression)
    assert np.abs(rgb(file.getvalue()) - want).max() <= 1


def tiff(values: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
ODD = {
    "white is zero": (tiff(RAMP, photometric="miniswhite"), "white"),
    "planar": (tiff(np.stack([RAMP] * 3), photometric="rgb", planarconfig="separate"), "planar"),
    "32 bits": (tiff(RAMP.astype(np.uint32) << 16, photometric="minisblack"), "32 bits"),
    "signed": (tiff(RAMP.astype(np.int16), photometric="minisblack"), "sign"),
    "fractions": (tiff(RAMP / np.float32(65535), photometric="minisblack"), "fractions"),
    "fractions of colour": (tiff(np.dstack([RAMP] * 3) / np.float32(65535), photometric="rgb"), "8 or 16 bits"),
    "Lab": (images.encoded(images.picture().convert("LAB"), "TIFF"), "Lab"),
    "raw": (tiff(RAMP.astype(np.uint8), subfiletype=1), "raw"),
    "raw with its version": (tiff(RAMP.astype(np.uint8), extratags=[(50706, "B", 4, b"\1\4\0\0", True)]), "raw"),
}


@pytest.mark.parametrize("kind", list(ODD))
def test_what_would_be_shown_as_another_picture_is_refused(kind):
    data, what = ODD[kind]
    with pytest.raises(BadRow, match=what) as caught:
        load_rgb(data, "output", DEFAULT_LIMITS)
    assert caught.value.reason == Reason.WRONG_FORMAT


@pytest.mark.parametrize("primaries", list(PROFILES))
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_of_another_profile_become_srgb(primaries, mode):
    to_xyz, curve = PROFILES[primaries]
    linear = srgb_to_linear(np.asarray(images.picture()) / 255) @ SRGB_TO_XYZ.T
    numbers = np.rint(255 * (linear @ np.linalg.inv(to_xyz).T).clip(0, 1) ** (1 / curve)).astype(np.uint8)
    data = images.encoded(Image.fromarray(numbers).convert(mode), icc_profile=profile(to_xyz, curve))
    error = np.abs(rgb(data) - np.asarray(images.picture()))
    assert error.mean() < 1.5 and np.abs(numbers.astype(int) - np.asarray(images.picture())).mean() > 4


def test_cmyk_with_a_profile_for_rgb_and_broken_profiles_are_as_without():
    plain = images.encoded(images.picture())
    for broken in (b"not a profile" * 20, profile(*PROFILES["display-p3"])[:200]):
        assert np.array_equal(rgb(images.encoded(images.picture(), icc_profile=broken)), rgb(plain))
    red = Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK")
    data = images.encoded(red, "JPEG", quality=95, icc_profile=profile(*PROFILES["display-p3"]))
    assert np.abs(rgb(data) - [255, 0, 0]).max() <= 6


def test_srgb_keeps_its_numbers():
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(rgb(images.encoded(images.picture(), icc_profile=own)), np.asarray(images.picture()))


@pytest.mark.parametrize("load", [load_hole, partial(load_rgb, target=(64, 64))])
def test_16_bits_cost_little_memory(load):
    """Numpy's part of it, which was 17 bytes per pixel."""
    data = images.encoded(Image.fromarray(np.full((3000, 3000), 40_000, np.uint16)))
    tracemalloc.start()
    try:
        assert load(data, "output", DEFAULT_LIMITS).getpixel((0, 0)) == 156
        assert tracemalloc.get_traced_memory()[1] <= 3000 * 3000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_on_white_costs_little_memory(mode, monkeypatch):
    """What lies between, which was 17 bytes per pixel, is that of a few lines."""

    def counted(image):
        heights.append(image.height)
        return converted(image)

    heights, converted = [], decode.to_rgb_and_alpha
    monkeypatch.setattr(decode, "to_rgb_and_alpha", counted)
    data = images.encoded(Image.new(mode, (50, 1000)), **({"transparency": 0} if mode == "P" else {}))
    assert (rgb(data) == 255).all()
    assert max(heights) <= 64 and sum(heights) == 1000


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_animations_are_refused(form):
    assert reason(images.animated(form)) == Reason.ANIMATED


def test_bombs_are_refused_before_they_are_decoded():
    assert reason(images.png_bomb(9000, 9000)) == Reason.TOO_MANY_PIXELS
    assert reason(images.png_bomb(40_000, 40_000)) == Reason.TOO_MANY_PIXELS
    assert reason(images.encoded(images.picture()), Limits(max_pixels=40 * 30 - 1)) == Reason.TOO_MANY_PIXELS
    assert reason(images.encoded(images.picture()), Limits(max_bytes=50)) == Reason.TOO_MANY_BYTES


def test_white_is_what_shall_be_painted():
    found = hole(images.encoded(images.mask()))
    assert found[0, 0] == 255 and found[-1, -1] == 0


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "LA", "P", "CMYK"])
def test_masks_of_any_mode_paint_where_they_are_white(mode):
    image = images.mask().convert(mode)
    data = images.encoded(image, "JPEG", quality=95) if mode == "CMYK" else images.encoded(image)
    assert np.array_equal(hole(data) >= 128, np.asarray(images.mask()) >= 128)


@pytest.mark.parametrize("alpha", [0, 128, 254])
def test_a_transparent_mask_is_refused(alpha):
    """White on transparent, or white where something was erased: nobody can tell which is to be painted."""
    white = np.asarray(images.mask())
    assert np.array_equal(hole(images.encoded(Image.fromarray(np.dstack([white, np.full_like(white, 255)])))), white)
    for values in (np.maximum(white, alpha), np.maximum(255 - white, alpha)):
        with pytest.raises(BadRow, match="without transparency") as caught:
            hole(images.encoded(Image.fromarray(np.dstack([white, values]))))
        assert caught.value.reason == Reason.TRANSPARENT_MASK


def test_16_bit_masks_are_scaled_and_not_clipped():
    values = np.array([[0, 300, 32768, 65535]], dtype=np.uint16)
    assert hole(images.encoded(Image.fromarray(values))).tolist() == [[0, 1, 128, 255]]


def test_empty_and_full_masks_are_refused():
    for value, expected in ((0, Reason.EMPTY_HOLE), (4, Reason.EMPTY_HOLE), (255, Reason.FULL_HOLE)):
        with pytest.raises(BadRow) as caught:
            check_hole(np.full((4, 4), value, dtype=np.uint8), "mask")
        assert caught.value.reason == expected
    check_hole(np.asarray(images.mask()), "mask")


@settings(max_examples=150, deadline=None)
@given(
    form=st.sampled_from(FORMATS),
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    kept=st.floats(0.05, 1),
)
def test_broken_bytes_raise_nothing_but_bad_row(form, damage, kept):
    data = bytearray(images.with_orientation(images.picture(), images.ROTATED, form))
    for at, value in damage:
        data[int(at * len(data))] = value
    for load in (load_rgb, load_hole):
        try:
            load(bytes(data[: int(kept * len(data))]), "output", DEFAULT_LIMITS)
        except BadRow:
            continue


def test_damage_that_decoders_tell_in_their_own_way_is_a_bad_row():
    data = bytearray(images.encoded(images.picture(), "AVIF"))
    body = data.index(b"mdat") + 4
    data[body : body + 24] = bytes(24)
    assert reason(bytes(data)) == Reason.TRUNCATED
    data = images.encoded(images.picture(), "TIFF")
    first = int.from_bytes(data[4:8], "little")
    further = first + 2 + 12 * int.from_bytes(data[first : first + 2], "little")
    empty = data[:further] + len(data).to_bytes(4, "little") + data[further + 4 :] + bytes(6)
    assert reason(empty) == Reason.TRUNCATED
    for form, kept in (("JPEG", 3), ("PNG", 12), ("WEBP", 20)):
        assert reason(images.encoded(images.picture(), form)[:kept]) == Reason.TRUNCATED


def test_limits_must_be_positive():
    with pytest.raises(InpaintError, match="max_pixels 0"):
        Limits(max_pixels=0)
