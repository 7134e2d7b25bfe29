"""Photos and masks as files at paths or URLs -> arrays, and pictures back."""

import io
from enum import StrEnum

import numpy as np
from PIL import Image

from inpaint.data.decode import DEFAULT_LIMITS, PAINT, load_hole, load_rgb
from inpaint.data.files import read
from inpaint.data.holes import CentreKept
from inpaint.data.quarantine import Reason
from inpaint.data.rows import Row
from inpaint.data.storage import open_root, opened, written
from inpaint.errors import BadRow, InpaintError
from inpaint.paint.paste import comparison
from inpaint.randomness import generator


class Fill(StrEnum):
    """What of a mask file is the hole."""

    WHITE = "white"
    """Everywhere but with a DDPM."""
    BLACK = "black"
    """Masks of a DDPM."""


def read_row(row: Row, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The photo to paint on (H x W x 3 uint8) and its hole (H x W bool). Raises BadRow.

    The photo is the row's `input`, or its image. Without a mask the hole is all but a centre of random size.
    """
    root, most = open_root(row.root), DEFAULT_LIMITS.max_bytes
    path, field = (row.image, "output") if row.input is None else (row.input, "input")
    photo = _photo(read(root, path, field, most), field)
    if row.hole is None:
        height, width = photo.shape[:2]
        return photo, CentreKept().draw(None, height, width, generator(seed, f"paint/{row.id}", 0)) >= PAINT
    return photo, _hole(read(root, row.hole, "mask", most), photo, Fill.WHITE)


def read_photo(image: str, mask: str, fill: Fill) -> tuple[np.ndarray, np.ndarray]:
    """One photo (H x W x 3 uint8) and its hole (H x W bool) from files. Raises InpaintError, also BadRow."""
    photo = _photo(_bytes(image, "image"), "image")
    return photo, _hole(_bytes(mask, "mask"), photo, fill)


def check_png_name(output: str) -> None:
    """Raises InpaintError for pictures that would not keep their pixels."""
    if not output.lower().endswith(".png"):
        raise InpaintError(f"output {output}: give a name that ends in .png, which keeps pixels as they are")


def comparison_name(output: str) -> str:
    """Where the comparison of one photo's picture goes: `a.png` -> `a_comparison.png`."""
    return f"{output[: -len('.png')]}_comparison.png"


def write_pictures(output: str, photo: np.ndarray, hole: np.ndarray, picture: np.ndarray) -> None:
    """Write one photo's picture and its comparison."""
    write_png(output, picture)
    write_png(comparison_name(output), comparison(photo, hole, picture))


def write_png(where: str, image: np.ndarray) -> None:
    """Write H x W x 3 uint8 to a path or URL."""
    with written(where) as file:
        file.write(encode_png(image))


def encode_png(image: np.ndarray) -> bytes:
    """H x W x 3 uint8 -> PNG."""
    file = io.BytesIO()
    # Level 1 is several times faster than the default and costs a tenth in size.
    Image.fromarray(image).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def _bytes(where: str, field: str) -> bytes:
    try:
        with opened(where) as file:
            return bytes(file.read())
    except InpaintError as error:
        raise InpaintError(f"{field} {error}") from error


def _photo(data: bytes, field: str) -> np.ndarray:
    return np.asarray(load_rgb(data, field, DEFAULT_LIMITS))


def _hole(data: bytes, photo: np.ndarray, fill: Fill) -> np.ndarray:
    white = np.asarray(load_hole(data, "mask", DEFAULT_LIMITS)) >= PAINT
    hole = white if fill is Fill.WHITE else ~white
    if hole.shape != photo.shape[:2]:
        height, width = photo.shape[:2]
        detail = f"{hole.shape[1]} x {hole.shape[0]}, the photo is {width} x {height}: make them the same size"
        raise BadRow("mask", Reason.OTHER_SIZE, detail)
    if not hole.any():
        detail = f"no pixel is {fill}: {fill} is what shall be painted; is it inverted?"
        raise BadRow("mask", Reason.EMPTY_HOLE, detail)
    return hole
