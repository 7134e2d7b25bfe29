"""Rows as people really have them: kinds of damage and oddity, each with what must become of its rows.

A `Row` starts whole (a toy scene as PNG, its mask, a caption); a kind changes what lies in the files or in the line of
the CSV, and says by its entry in `KINDS` whether the row is to be used, or for which reason it is to be refused.
"""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageDraw

from benchmarks.colour import PROFILES, SRGB_TO_XYZ, profile, srgb_to_linear
from benchmarks.odd_files import HEIC, HUGE, bad_crc, encoded, grey_ramp, planes, png, wide
from inpaint.data.quarantine import Reason
from inpaint.toy.catalogue import render

HEADER = b"input,mask,output,prompt,category"
CATEGORIES = ("CDP_COS", "CDP_FOOD")
SEED = 77


@dataclass
class Row:
    """One row in the making."""

    folder: Path
    """The root; paths in the CSV are relative to it."""
    stem: str
    image: Image.Image
    mask: Image.Image
    prompt: str
    category: str
    image_name: str = ""
    mask_name: str = ""
    image_bytes: bytes = b""
    mask_bytes: bytes = b""
    line: bytes | None = None
    """Of the CSV, where it is not simply made of the cells."""
    close: float = 1.0
    """How far, on average, the picture that is used may be from `expected`, in levels of 255."""
    expected: Image.Image | None = None
    """What the picture shows, as sRGB; None: `image` as it is at the end, in RGB."""

    @classmethod
    def of(cls, folder: Path, kind: str, number: int) -> "Row":
        scene = render(SEED, number)
        stem = f"{kind}/{number}"
        row = cls(
            folder=folder,
            stem=stem,
            image=Image.fromarray(scene.image),
            mask=Image.fromarray((~scene.product * 255).astype(np.uint8)),
            prompt=scene.caption(True),
            category=CATEGORIES[number % 2],
            image_name=f"{stem}.png",
            mask_name=f"{stem}_mask.png",
        )
        row.image_bytes, row.mask_bytes = row.saved("PNG"), encoded(row.mask, "PNG")
        return row

    def saved(self, form: str, **how: object) -> bytes:
        """The image in this format, under a name of it."""
        self.image_name = f"{self.stem}.{form.lower()}"
        return encoded(self.image, form, **how)

    def cells(self) -> list[str]:
        return [self.image_name, self.mask_name, self.image_name, self.prompt, self.category]

    def write(self) -> bytes:
        """The files, and the line of the CSV."""
        for name, content in ((self.image_name, self.image_bytes), (self.mask_name, self.mask_bytes)):
            path = self.folder / name
            if content and not os.path.lexists(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return joined(self.cells()) if self.line is None else self.line


@dataclass(frozen=True)
class Kind:
    """A damage or oddity."""

    change: Callable[[Row], object]
    reason: Reason | None = None
    """Why its rows are refused; None: they are used."""


def joined(cells: list[str]) -> bytes:
    """A line of a CSV, as a spreadsheet writes it."""
    quoted = ['"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\n\r') else cell for cell in cells]
    return ",".join(quoted).encode()


# Pictures of every kind that are used.


def as_format(form: str, *, mode: str | None = None, close: float = 1.0, **how: object) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        row.expected = row.image
        if mode is not None:
            row.image = row.image.convert(mode)
            row.expected = row.image.convert("RGB")
        row.image_bytes, row.close = row.saved(form, **how), close

    return change


def on_its_side(row: Row) -> None:
    row.expected = row.image
    exif = Image.Exif()
    exif[0x0112] = 6
    row.image = row.image.transpose(Image.Transpose.ROTATE_90)
    row.image_bytes, row.close = row.saved("JPEG", quality=95, exif=exif.tobytes()), 6.0


def called(extension: str) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        row.image_bytes, row.close = row.saved("JPEG", quality=95), 6.0
        row.image_name = f"{row.stem}.{extension}"

    return change


def broken_exif(row: Row) -> None:
    row.image_bytes, row.close = row.saved("JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), 6.0


def trailing_bytes(row: Row) -> None:
    row.image_bytes, row.close = row.saved("JPEG", quality=95) + b"\0" * 999 + b"camera's own", 6.0


def half_transparent(row: Row) -> None:
    alpha = Image.new("L", row.image.size, 128)
    white = Image.new("RGB", row.image.size, "white")
    row.expected = Image.blend(white, row.image, 128 / 255)
    row.image = row.image.copy()
    row.image.putalpha(alpha)
    row.image_bytes = row.saved("PNG")


def transparent_palette(row: Row) -> None:
    small = row.image.quantize(255)
    row.expected = small.convert("RGB")
    row.image = small
    row.image_bytes = row.saved("PNG", transparency=255)


def sixteen_bits(row: Row) -> None:
    grey = np.asarray(row.image.convert("L")).astype(np.uint16)
    row.expected = row.image.convert("L").convert("RGB")
    row.image_bytes = encoded(Image.fromarray(grey * 257), "PNG")


def sixteen_bit_colour(row: Row) -> None:
    row.image_bytes = png(np.asarray(row.image).astype(np.uint16) * 257)


def interlaced(row: Row) -> None:
    row.image_bytes = png(np.asarray(row.image), interlace=True)


def wide_gamut(primaries: str) -> Callable[[Row], None]:
    """The same colours as numbers of another profile."""

    def change(row: Row) -> None:
        to_xyz, curve = PROFILES[primaries]
        linear = srgb_to_linear(np.asarray(row.image) / 255.0) @ SRGB_TO_XYZ.T
        numbers = (linear @ np.linalg.inv(to_xyz).T).clip(0, 1) ** (1 / curve)
        row.expected = row.image
        row.image = Image.fromarray(np.rint(numbers * 255).astype(np.uint8))
        row.image_bytes = row.saved("PNG", icc_profile=profile(to_xyz, curve))
        row.close = 3.0

    return change


def broken_profile(row: Row) -> None:
    row.image_bytes = row.saved("PNG", icc_profile=b"not a profile" * 20)


def tiff(change: Callable[[np.ndarray], np.ndarray] = np.asarray, **how: Any) -> Callable[[Row], None]:
    """As other programs write it."""

    def change_row(row: Row) -> None:
        file = io.BytesIO()
        tifffile.imwrite(file, np.ascontiguousarray(change(np.asarray(row.image))), **how)
        row.image_name, row.image_bytes = f"{row.stem}.tif", file.getvalue()

    return change_row


def several_pictures(row: Row) -> None:
    preview = row.image.resize((16, 16))
    row.image_bytes = row.saved("MPO", quality=95, save_all=True, append_images=[preview])
    row.image_name, row.close = f"{row.stem}.jpg", 6.0


# Masks that are used.


def mask_as(form: str, mode: str = "L", **how: object) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        row.mask_name = f"{row.stem}_mask.{form.lower()}"
        row.mask_bytes = encoded(row.mask.convert(mode), form, **how)

    return change


def mask_of_16_bits(row: Row) -> None:
    row.mask_bytes = encoded(Image.fromarray(np.asarray(row.mask).astype(np.uint16) * 257), "PNG")


def thin_hole(row: Row) -> None:
    """One pixel in width, in a photo far larger than what is trained on."""
    row.image = row.image.resize((2048, 2048))
    mask = Image.new("L", row.image.size, 0)
    ImageDraw.Draw(mask).line([(1200, 300), (1200, 1500)], fill=255, width=1)
    row.mask, row.close = mask, 8.0
    row.image_bytes, row.mask_bytes = row.saved("JPEG", quality=90), encoded(mask, "PNG")


def hole_aside(row: Row) -> None:
    """Outside the middle square of a wide photo."""
    wide = Image.new("RGB", (256, 64), "grey")
    wide.paste(row.image, (192, 0))
    mask = Image.new("L", wide.size, 0)
    mask.paste(255, (200, 8, 248, 56))
    row.image, row.mask = wide, mask
    row.image_bytes, row.mask_bytes = row.saved("PNG"), encoded(mask, "PNG")


# Names and cells that are used.


def named(pattern: str) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        row.image_name = f"{row.stem}{pattern}.png"

    return change


def said(text: str) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        row.prompt = f"{row.prompt}{text}"

    return change


def spaced(row: Row) -> None:
    row.line = b" , ".join(cell.encode() for cell in row.cells())


def linked(row: Row) -> None:
    target = row.folder / f"{row.stem}_target.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(row.image_bytes)
    (row.folder / row.image_name).symlink_to(target.name)


def dotted(row: Row) -> None:
    line = joined(row.cells())
    row.line = line.replace(row.image_name.encode(), f"./{row.image_name}".encode())


# Files that are refused.


def content(data: bytes | Callable[[bytes], bytes], name: str = "") -> Callable[[Row], None]:
    def change(row: Row) -> None:
        row.image_name = f"{row.stem}{name}" if name else row.image_name
        path = row.folder / row.image_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data(row.image_bytes))

    return change


def moving(form: str, name: str) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        row.image_bytes = encoded(row.image, form, save_all=True, append_images=[row.image.rotate(90)])
        row.image_name = f"{row.stem}.{name}"

    return change


def shortened(form: str, **how: object) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        row.image_bytes = row.saved(form, **how)
        row.image_bytes = row.image_bytes[: len(row.image_bytes) // 2]

    return change


def damaged_avif(row: Row) -> None:
    """With its box of pixels blanked, which the decoder finds out late."""
    whole = row.saved("AVIF", quality=90)
    place = whole.index(b"mdat") + 4
    row.image_bytes = whole[:place] + bytes(64) + whole[place + 64 :]


def placed(put: Callable[[Path], object]) -> Callable[[Row], None]:
    """Something else than a file where the image should be."""

    def change(row: Row) -> None:
        path = row.folder / row.image_name
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path)
        row.image_bytes = b""

    return change


def outside(path: Path) -> None:
    other = path.parents[1].with_name("outside.png")
    if not other.exists():
        Image.new("RGB", (64, 64)).save(other)
    path.symlink_to(other)


def cell(**values: str) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        cells = dict(zip(("input", "mask", "output", "prompt", "category"), row.cells(), strict=True)) | values
        row.line = joined(list(cells.values()))

    return change


def backslashes(row: Row) -> None:
    cell(output=row.image_name.replace("/", "\\"))(row)


def parent(row: Row) -> None:
    cell(output=f"../{row.image_name}")(row)


def no_mask(row: Row) -> None:
    row.mask_bytes = b""


def even_mask(value: int) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        row.mask_bytes = encoded(Image.new("L", row.mask.size, value), "PNG")

    return change


def erased_mask(row: Row) -> None:
    """White, with what shall be painted cut out of it, as editors do."""
    mask = Image.new("LA", row.mask.size, (255, 255))
    mask.putalpha(row.mask.point(lambda value: 255 - value))
    row.mask_bytes = encoded(mask, "PNG")


def small_mask(row: Row) -> None:
    row.mask_bytes = encoded(row.mask.resize((63, 63)), "PNG")


def torn_mask(row: Row) -> None:
    row.mask_bytes = row.mask_bytes[: len(row.mask_bytes) // 2]


# Lines that are refused, and must cost no other.


def too_few(row: Row) -> None:
    row.line = joined(row.cells()[:3])


def too_many(row: Row) -> None:
    row.line = joined(row.cells()).replace(row.prompt.encode(), b"red box, shiny")


def unclosed(row: Row) -> None:
    row.line = joined(row.cells()).replace(row.prompt.encode(), b'"' + row.prompt.encode())


def not_utf8(row: Row) -> None:
    row.line = joined(row.cells()).replace(row.prompt.encode(), "Stra\u00dfe".encode("latin-1"))


def huge_cell(row: Row) -> None:
    row.prompt = "x" * 200_000


KINDS: dict[str, Kind] = {
    "png": Kind(lambda row: None),
    "jpeg": Kind(as_format("JPEG", quality=95, subsampling=0, close=6.0)),
    "jpeg progressive": Kind(as_format("JPEG", quality=95, subsampling=0, progressive=True, close=6.0)),
    "jpeg grey": Kind(as_format("JPEG", mode="L", quality=95, close=6.0)),
    "jpeg cmyk": Kind(as_format("JPEG", mode="CMYK", quality=95, close=6.0)),
    "jpeg on its side": Kind(on_its_side),
    "jpeg broken exif": Kind(broken_exif),
    "jpeg called png": Kind(called("png")),
    "jpeg with bytes behind": Kind(trailing_bytes),
    "jpeg of several pictures": Kind(several_pictures),
    "webp": Kind(as_format("WEBP", lossless=True)),
    "png grey": Kind(as_format("PNG", mode="L")),
    "png palette": Kind(as_format("PNG", mode="P")),
    "png palette transparent": Kind(transparent_palette),
    "png grey alpha": Kind(as_format("PNG", mode="LA")),
    "png half transparent": Kind(half_transparent),
    "png one bit": Kind(as_format("PNG", mode="1")),
    "png 16 bit grey": Kind(sixteen_bits),
    "png 16 bit colour": Kind(sixteen_bit_colour),
    "png interlaced": Kind(interlaced),
    "png display p3": Kind(wide_gamut("display-p3")),
    "png adobe rgb": Kind(wide_gamut("adobe-rgb")),
    "png broken profile": Kind(broken_profile),
    "tiff lzw": Kind(as_format("TIFF", compression="tiff_lzw")),
    "tiff zip": Kind(as_format("TIFF", compression="tiff_adobe_deflate")),
    "tiff cmyk": Kind(as_format("TIFF", mode="CMYK")),
    "tiff 16 bit": Kind(tiff(wide, photometric="rgb", compression="zlib")),
    "tiff planar": Kind(tiff(planes, photometric="rgb", planarconfig="separate")),
    "tiff in tiles": Kind(tiff(photometric="rgb", tile=(16, 16))),
    "jpeg called jfif": Kind(called("jfif")),
    "avif": Kind(as_format("AVIF", quality=90, close=8.0)),
    "mask jpeg": Kind(mask_as("JPEG", quality=85)),
    "mask colour": Kind(mask_as("PNG", "RGB")),
    "mask palette": Kind(mask_as("PNG", "P")),
    "mask one bit": Kind(mask_as("PNG", "1")),
    "mask 16 bit": Kind(mask_of_16_bits),
    "hole one pixel wide": Kind(thin_hole),
    "hole aside": Kind(hole_aside),
    "name with spaces": Kind(named(" (copy) 1")),
    "name not ascii": Kind(named("-\u00e9t\u00e9-\u5546\u54c1")),
    "name with comma": Kind(named(", red")),
    "path with dot": Kind(dotted),
    "prompt with comma": Kind(said(", on a table")),
    "prompt with quotes": Kind(said(' "new"')),
    "prompt of two lines": Kind(said("\nin daylight")),
    "prompt not ascii": Kind(said(" \u2014 gr\u00fcn \U0001f34f")),
    "prompt too long": Kind(said(", shiny" * 100)),
    "cells with spaces": Kind(spaced),
    "link within": Kind(linked),
    "zero bytes": Kind(content(b""), Reason.ZERO_BYTES),
    "text": Kind(content(b"<html>404</html>"), Reason.NOT_AN_IMAGE),
    "jpeg cut short": Kind(shortened("JPEG", quality=95), Reason.TRUNCATED),
    "png cut short": Kind(shortened("PNG"), Reason.TRUNCATED),
    "webp cut short": Kind(shortened("WEBP"), Reason.TRUNCATED),
    "png bad checksum": Kind(content(bad_crc), Reason.TRUNCATED),
    "jpeg of a header": Kind(content(b"\xff\xd8\xff\xe0"), Reason.TRUNCATED),
    "avif damaged": Kind(damaged_avif, Reason.TRUNCATED),
    "tiff of two pages": Kind(tiff(lambda pixels: np.stack([pixels] * 2), photometric="rgb"), Reason.ANIMATED),
    "tiff lab": Kind(as_format("TIFF", mode="LAB"), Reason.WRONG_FORMAT),
    "tiff 32 bit": Kind(tiff(grey_ramp("uint32")), Reason.WRONG_FORMAT),
    "tiff signed": Kind(tiff(grey_ramp("int16")), Reason.WRONG_FORMAT),
    "tiff fractions": Kind(tiff(grey_ramp("float32")), Reason.WRONG_FORMAT),
    "tiff white is zero": Kind(tiff(grey_ramp("uint16"), photometric="miniswhite"), Reason.WRONG_FORMAT),
    "tiff 16 bit planar": Kind(
        tiff(lambda pixels: planes(wide(pixels)), photometric="rgb", planarconfig="separate"), Reason.WRONG_FORMAT
    ),
    "camera raw": Kind(tiff(lambda pixels: pixels[::4, ::4], photometric="rgb", subfiletype=1), Reason.WRONG_FORMAT),
    "gif": Kind(as_format("GIF"), Reason.WRONG_FORMAT),
    "bmp": Kind(as_format("BMP"), Reason.WRONG_FORMAT),
    "svg": Kind(content(b"<svg xmlns='http://www.w3.org/2000/svg'/>", ".svg"), Reason.WRONG_FORMAT),
    "pdf": Kind(content(b"%PDF-1.7\n", ".pdf"), Reason.WRONG_FORMAT),
    "heic": Kind(content(HEIC, ".heic"), Reason.WRONG_FORMAT),
    "apng": Kind(moving("PNG", "png"), Reason.ANIMATED),
    "webp animated": Kind(moving("WEBP", "webp"), Reason.ANIMATED),
    "bomb": Kind(content(HUGE), Reason.TOO_MANY_PIXELS),
    "no file": Kind(placed(lambda path: None), Reason.MISSING_FILE),
    "folder": Kind(placed(Path.mkdir), Reason.MISSING_FILE),
    "fifo": Kind(placed(os.mkfifo), Reason.MISSING_FILE),
    "link to itself": Kind(placed(lambda path: path.symlink_to(path.name)), Reason.UNREADABLE),
    "link to nothing": Kind(placed(lambda path: path.symlink_to("gone.png")), Reason.MISSING_FILE),
    "link out": Kind(placed(outside), Reason.OUTSIDE_ROOT),
    "absolute path": Kind(cell(output="/etc/hostname"), Reason.OUTSIDE_ROOT),
    "path above": Kind(parent, Reason.OUTSIDE_ROOT),
    "url": Kind(cell(output="https://example.com/a.png"), Reason.URL),
    "backslashes": Kind(backslashes, Reason.MISSING_FILE),
    "nul in path": Kind(cell(output="a\0b.png"), Reason.OUTSIDE_ROOT),
    "name too long": Kind(cell(output="a" * 300 + ".png"), Reason.UNREADABLE),
    "no output": Kind(cell(output=""), Reason.EMPTY_FIELD),
    "no prompt": Kind(cell(prompt=" "), Reason.EMPTY_PROMPT),
    "no category": Kind(cell(category=""), Reason.EMPTY_FIELD),
    "unknown category": Kind(cell(category="CDP_COZ"), Reason.UNKNOWN_CATEGORY),
    "mask missing": Kind(no_mask, Reason.MISSING_FILE),
    "mask black": Kind(even_mask(0), Reason.EMPTY_HOLE),
    "mask white": Kind(even_mask(255), Reason.FULL_HOLE),
    "mask erased": Kind(erased_mask, Reason.TRANSPARENT_MASK),
    "mask of another size": Kind(small_mask, Reason.OTHER_SIZE),
    "mask cut short": Kind(torn_mask, Reason.TRUNCATED),
    "too few cells": Kind(too_few, Reason.TOO_FEW_FIELDS),
    "too many cells": Kind(too_many, Reason.TOO_MANY_FIELDS),
    "quote not closed": Kind(unclosed, Reason.OPEN_QUOTE),
    "not utf-8": Kind(not_utf8, Reason.NOT_UTF8),
    "huge cell": Kind(huge_cell, Reason.TOO_LONG),
}
