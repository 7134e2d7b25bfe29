"""Bytes of a photo and of a mask -> image and hole, everything checked before anything is decoded.

Guaranteed: photo and mask are each turned by their own EXIF and then have one size. Which mask value means "paint" is
the dialect's to say; a mask of the other kind is refused where it can be told, never read upside down.
"""

import warnings
from typing import Literal

import numpy as np
from PIL import Image

from inpaint.data import decode
from inpaint.paint.photos import Photo
from inpaint.serve.http.errors import bad
from inpaint.serve.http.limits import HttpSettings

# Of metadata that nobody can read and that nothing here depends on: a photo with damaged EXIF is taken as it lies in
# the file, as viewers do. What costs the picture is raised.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def decode_photo(data: bytes, field: str, settings: HttpSettings, smallest: int) -> Photo:
    """Decode a photo whose sides have at least `smallest` pixels. Raises BadRow, Problem."""
    return Photo.of(_opened(data, field, settings, smallest))


def read_hole(
    data: bytes | None, photo: Photo, settings: HttpSettings, paints: Literal["white", "black", "opaque", "transparent"]
) -> np.ndarray:
    """H x W bool, True = paint, of a mask; without one, what is transparent in the photo. Raises BadRow, Problem.

    Args:
        paints: `white`: grey values from 128, and a mask with transparent pixels is refused, for OpenAI's mean the
            opposite; `black`: its contrary; `opaque`: as `white`, but such a mask is read by its alpha, as A1111 does;
            `transparent`: alpha 0, as OpenAI does, and a mask without alpha is refused.
    """
    if data is None:
        if photo.transparent is None:
            message = f"missing, and the image has no alpha channel: send a mask, in which what is {paints} is painted"
            raise bad("mask", message, "missing")
        return photo.transparent
    mask = _opened(data, "mask", settings, 1)
    alpha = decode.alpha_of(mask)
    if paints == "transparent":
        if alpha is None:
            raise bad(
                "mask",
                f"a {mask.mode} image without an alpha channel, and here transparency (alpha 0) is what gets painted, "
                "not white: send a PNG with alpha, 0 where to paint and 255 elsewhere",
                "mask_without_alpha",
            )
        hole = np.asarray(alpha) == 0
    elif alpha is None or np.asarray(alpha).min() == 255:
        hole = (np.asarray(decode.to_grey(mask)) >= decode.PAINT) != (paints == "black")
    elif paints == "opaque":
        hole = np.asarray(alpha) >= decode.PAINT
    else:
        other = ", or use /v1/images/edits, where transparency is painted" if paints == "white" else ""
        message = f"has transparent pixels, and here {paints} is painted, not transparency: send a grey image, "
        raise bad("mask", f"{message}{paints} = paint{other}", "ambiguous_mask")
    height, width = photo.image.shape[:2]
    if hole.shape != (height, width):
        raise bad(
            "mask",
            f"{hole.shape[1]} x {hole.shape[0]} pixels, the image has {width} x {height} (each upright by its own "
            "EXIF): send a mask of the image's size",
            "other_size",
        )
    return hole


def _opened(data: bytes, field: str, settings: HttpSettings, smallest: int) -> Image.Image:
    limits = decode.Limits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_pixels)
    image = decode.open_image(data, field, limits)
    width, height = image.size
    if max(width, height) > settings.max_side:
        raise bad(field, f"{width} x {height} pixels, the longest side allowed is {settings.max_side:,}: scale it down")
    if min(width, height) < smallest:
        raise bad(field, f"{width} x {height} pixels, the shortest side allowed is {smallest}: send a larger picture")
    if max(width, height) > settings.max_aspect * min(width, height):
        raise bad(field, f"{width} x {height} pixels, sides may differ by a factor of {settings.max_aspect:g}: crop it")
    return decode.upright(image, field)
