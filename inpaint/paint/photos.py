"""Photos and masks as files at paths or URLs -> arrays, and pictures back as their photos came.

Guaranteed: outside the hole a picture has its photo's own numbers, in its own colour profile and with its own alpha;
models see sRGB, what is transparent on white. Not kept: bits beyond 8, and profiles of other colours than RGB.
"""

import io
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from PIL import Image

from inpaint.data.decode import (
    DEFAULT_LIMITS,
    PAINT,
    from_srgb,
    load_hole,
    on_white,
    open_image,
    own_rgb,
    rgb_profile,
    to_rgb_and_alpha,
    upright,
)
from inpaint.data.files import read
from inpaint.data.holes import CentreKept
from inpaint.data.panels import ChosenPanels
from inpaint.data.quarantine import Reason
from inpaint.data.rows import Row
from inpaint.data.storage import open_root, opened, written
from inpaint.errors import BadRow, InpaintError
from inpaint.paint.crop import resize_image
from inpaint.paint.paste import comparison
from inpaint.randomness import generator


@dataclass(frozen=True, kw_only=True, eq=False)
class Photo:
    """A photo to paint on, and what it takes to give it back as it came."""

    image: np.ndarray
    """H x W x 3 uint8, as sRGB; what is transparent is on white."""
    own: np.ndarray
    """Its own numbers: H x W x 3 uint8, or 4 with alpha."""
    profile: bytes = b""
    """Whose numbers they are (ICC); empty: sRGB."""

    @classmethod
    def of(cls, picture: Image.Image) -> "Photo":
        """Of an upright picture."""
        (rgb, alpha), profile = to_rgb_and_alpha(picture), rgb_profile(picture)
        image = np.array(on_white(rgb, alpha))
        if alpha is None and not profile:
            return cls(image=image, own=image)
        own = np.array(own_rgb(picture) if profile else rgb)
        return cls(image=image, own=own if alpha is None else np.dstack([own, np.asarray(alpha)]), profile=profile)

    @property
    def transparent(self) -> np.ndarray | None:
        """H x W bool, True where alpha is 0; None without an alpha channel."""
        return None if self.own.shape[2] == 3 else self.own[..., 3] == 0

    def resized(self, shape: tuple[int, int]) -> "Photo":
        """At another height and width."""
        if self.image.shape[:2] == shape:
            return self
        image = resize_image(self.image, shape)
        return replace(self, image=image, own=image if self.own is self.image else resize_image(self.own, shape))

    def painted(self, picture: np.ndarray, hole: np.ndarray) -> Image.Image:
        """The photo with what was painted in its hole, where nothing is transparent any more; RGB, or RGBA where
        something still is.

        Args:
            picture: as `image`, its kept pixels unchanged. hole: H x W bool.
        """
        if self.own is self.image:
            return Image.fromarray(picture)
        result = self.own.copy()
        result[hole, :3] = np.asarray(from_srgb(Image.fromarray(picture), self.profile))[hole]
        if result.shape[2] == 4:
            result[hole, 3] = 255
            if (result[..., 3] == 255).all():
                result = result[..., :3].copy()
        image = Image.fromarray(result)
        if self.profile:
            image.info["icc_profile"] = self.profile
        return image


class Fill(StrEnum):
    """What of a mask file is the hole."""

    WHITE = "white"
    """Everywhere but with a DDPM."""
    BLACK = "black"
    """Masks of a DDPM."""


def read_row(row: Row, seed: int, panels: ChosenPanels | None = None) -> tuple[Photo, np.ndarray]:
    """The photo to paint on and its hole (H x W bool). Raises BadRow.

    The photo is the row's `input`, or its image. The hole are the `panels`, where some are given; or else the row's
    mask; or else all but a centre of random size.
    """
    root, most = open_root(row.root), DEFAULT_LIMITS.max_bytes
    path, field = (row.image, "output") if row.input is None else (row.input, "input")
    photo = _photo(read(root, path, field, most), field)
    if panels is not None:
        return photo, panels.hole(photo.image)
    if row.hole is None:
        height, width = photo.image.shape[:2]
        return photo, CentreKept().draw(None, height, width, generator(seed, f"paint/{row.id}", 0)) >= PAINT
    return photo, _hole(read(root, row.hole, "mask", most), photo, Fill.WHITE)


def read_original(row: Row) -> tuple[bytes, Photo]:
    """The photo to paint on, as its file's bytes and decoded. Raises BadRow."""
    path, field = (row.image, "output") if row.input is None else (row.input, "input")
    data = read(open_root(row.root), path, field, DEFAULT_LIMITS.max_bytes)
    return data, _photo(data, field)


def decode_hole(mask: bytes, photo: Photo) -> np.ndarray:
    """The hole, H x W bool, of a mask file of the photo's size, in which white is painted. Raises BadRow."""
    return _hole(mask, photo, Fill.WHITE)


def read_image(root: str, path: str) -> np.ndarray:
    """One picture below a folder or URL as models see it, H x W x 3 uint8. Raises BadRow."""
    return _photo(read(open_root(root), path, "image", DEFAULT_LIMITS.max_bytes), "image").image


def read_thumbnail(root: str, path: str, width: int, height: int) -> np.ndarray:
    """The same, made to fit into so many pixels."""
    picture = Image.fromarray(read_image(root, path))
    picture.thumbnail((width, height))
    return np.asarray(picture)


def read_photo(image: str, mask: str, fill: Fill) -> tuple[Photo, np.ndarray]:
    """One photo and its hole (H x W bool) from files. Raises InpaintError, also BadRow."""
    photo = _photo(_bytes(image, "image"), "image")
    return photo, _hole(_bytes(mask, "mask"), photo, fill)


def read_composite(image: str, panels: ChosenPanels) -> tuple[Photo, np.ndarray]:
    """One composite from a file, and its hole (H x W bool): these panels. Raises InpaintError, also BadRow."""
    photo = _photo(_bytes(image, "image"), "image")
    return photo, panels.hole(photo.image)


def check_png_name(output: str) -> None:
    """Raises InpaintError for pictures that would not keep their pixels."""
    if not output.lower().endswith(".png"):
        raise InpaintError(f"output {output}: give a name that ends in .png, which keeps pixels as they are")


def comparison_name(output: str) -> str:
    """Where the comparison of one photo's picture goes: `a.png` -> `a_comparison.png`."""
    return f"{output[: -len('.png')]}_comparison.png"


def write_pictures(output: str, photo: Photo, hole: np.ndarray, picture: np.ndarray) -> None:
    """Write one photo's picture and its comparison."""
    write_png(output, photo.painted(picture, hole))
    write_png(comparison_name(output), comparison(photo.image, hole, picture))


def write_png(where: str, image: np.ndarray | Image.Image) -> None:
    """Write a picture (an array is H x W x 3 uint8) to a path or URL."""
    with written(where) as file:
        file.write(encode_png(image))


def encode_png(image: np.ndarray | Image.Image) -> bytes:
    """A picture (an array is H x W x 3 uint8) -> PNG, with its colour profile."""
    file = io.BytesIO()
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    # Level 1 is several times faster than the default and costs a tenth in size.
    picture.save(file, format="PNG", compress_level=1, icc_profile=picture.info.get("icc_profile"))
    return file.getvalue()


def _bytes(where: str, field: str) -> bytes:
    try:
        with opened(where) as file:
            return bytes(file.read())
    except InpaintError as error:
        raise InpaintError(f"{field} {error}") from error


def _photo(data: bytes, field: str) -> Photo:
    return Photo.of(upright(open_image(data, field, DEFAULT_LIMITS), field))


def _hole(data: bytes, photo: Photo, fill: Fill) -> np.ndarray:
    white = np.asarray(load_hole(data, "mask", DEFAULT_LIMITS)) >= PAINT
    hole = white if fill is Fill.WHITE else ~white
    if hole.shape != photo.image.shape[:2]:
        height, width = photo.image.shape[:2]
        detail = f"{hole.shape[1]} x {hole.shape[0]}, the photo is {width} x {height}: make them the same size"
        raise BadRow("mask", Reason.OTHER_SIZE, detail)
    if not hole.any():
        detail = f"no pixel is {fill}: {fill} is what shall be painted; is it inverted?"
        raise BadRow("mask", Reason.EMPTY_HOLE, detail)
    return hole
