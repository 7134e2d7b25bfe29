"""Bytes of a photo and of a mask -> image and hole, everything checked before anything is decoded.

Guaranteed: photo and mask are each turned by their own EXIF and then have one size. Which mask value means "paint" is
the dialect's to say: `hole_where_white` (A1111, ours) or `hole_where_transparent` (OpenAI); a mask of the other kind is
refused where it can be told, never read upside down.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from inpaint.data import decode
from inpaint.serve.http.errors import bad
from inpaint.serve.http.limits import HttpSettings

MASK = "mask"
"""The field's name in every dialect."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Photo:
    """A photo as it will be painted."""

    image: np.ndarray
    """H x W x 3 uint8; what was transparent is on white."""
    transparent: np.ndarray | None
    """H x W bool, True where alpha is 0; None without an alpha channel."""


def read_photo(data: bytes, field: str, settings: HttpSettings, smallest: int) -> Photo:
    """Decode a photo whose sides have at least `smallest` pixels. Raises BadRow, Problem."""
    picture = _opened(data, field, settings, smallest)
    alpha = decode.alpha_of(picture)
    transparent = None if alpha is None else np.asarray(alpha) == 0
    return Photo(image=np.array(decode.to_rgb(picture)), transparent=transparent)


def hole_where_white(
    data: bytes | None, photo: Photo, settings: HttpSettings, *, alpha_paints: bool = False
) -> np.ndarray:
    """H x W bool, True = paint: a mask's grey values from 128; without a mask, where the photo is transparent.

    Args:
        alpha_paints: a mask with transparent pixels is read by its alpha, opaque = paint, as A1111 does; else refused,
            for OpenAI's masks mean the opposite.
    """
    if data is None:
        return _transparent(photo, "send a grey image, white = paint")
    mask = _opened(data, MASK, settings, 1)
    alpha = decode.alpha_of(mask)
    if alpha is None or np.asarray(alpha).min() == 255:
        values = decode.to_grey(mask)
    elif alpha_paints:
        values = alpha
    else:
        raise bad(
            MASK,
            "has transparent pixels, and here white is painted, not transparency: send a grey image, white = paint, "
            "or use /v1/images/edits, where transparency is painted",
            "ambiguous_mask",
        )
    return _of_size(np.asarray(values) >= decode.PAINT, photo)


def hole_where_transparent(data: bytes | None, photo: Photo, settings: HttpSettings) -> np.ndarray:
    """H x W bool, True = paint: where alpha is 0, of a mask or, without one, of the photo."""
    if data is None:
        return _transparent(photo, "make what shall be painted transparent")
    mask = _opened(data, MASK, settings, 1)
    alpha = decode.alpha_of(mask)
    if alpha is None:
        raise bad(
            MASK,
            f"a {mask.mode} image without an alpha channel, and here transparency (alpha 0) is what gets painted, not "
            "white: send a PNG with alpha, 0 where to paint and 255 elsewhere",
            "mask_without_alpha",
        )
    return _of_size(np.asarray(alpha) == 0, photo)


def _transparent(photo: Photo, way_out: str) -> np.ndarray:
    if photo.transparent is None:
        raise bad(MASK, f"missing, and the image has no alpha channel: {way_out}", "missing")
    return photo.transparent


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


def _of_size(hole: np.ndarray, photo: Photo) -> np.ndarray:
    height, width = photo.image.shape[:2]
    if hole.shape != (height, width):
        raise bad(
            MASK,
            f"{hole.shape[1]} x {hole.shape[0]} pixels, the image has {width} x {height} (each upright by its own "
            "EXIF): send a mask of the image's size",
            "other_size",
        )
    return hole


def check_area(shape: tuple[int, ...], n: int, field: str, settings: HttpSettings) -> None:
    """Raise Problem where `n` pictures of H x W pixels are too many pixels together."""
    height, width = shape[:2]
    most = settings.max_answer_pixels
    if n * height * width > most:
        message = f"{n} pictures of {width} x {height} = {n * height * width:,} pixels, the limit is {most:,}"
        raise bad(field, message, "too_many_pixels")
