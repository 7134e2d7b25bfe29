"""Bytes of pictures, most of them as Pillow does not write them."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: Image.Image, form: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form, **how)
    return file.getvalue()


def png(pixels_HW3: np.ndarray, *, interlace: bool = False, side: int | None = None) -> bytes:
    """A PNG of 8 or 16 bits per channel as Pillow does not write it. Interlaced: Adam7's seven passes. Args: side: that
    the header claims."""
    height, width = (side, side) if side else pixels_HW3.shape[:2]
    bits = 8 * pixels_HW3.dtype.itemsize
    big = pixels_HW3.astype(pixels_HW3.dtype.newbyteorder(">"))
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [big[top::down, left::across] for top, left, down, across in passes] if interlace else [big]
    raw = b"".join(b"\0" + line.tobytes() for part in parts for line in part if line.size)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, int(interlace)))]
    chunks += [(b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def wide(pixels: np.ndarray) -> np.ndarray:
    """In 16 bits."""
    return pixels.astype(np.uint16) * 257


def planes(pixels: np.ndarray) -> np.ndarray:
    """Channels one behind the other."""
    return np.moveaxis(pixels, -1, 0)


def grey_ramp(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """The picture's red as grey of another type, over its whole range."""
    return lambda pixels: (pixels[..., 0] / 255 * (np.iinfo(dtype).max if dtype[0] in "iu" else 1)).astype(dtype)


def bad_crc(data: bytes) -> bytes:
    place = data.index(b"IDAT") + 8
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


HEIC = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(100)
HUGE = png(np.zeros((1, 1, 3), np.uint8), side=60_000)
