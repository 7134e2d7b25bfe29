"""Files for the tests: pictures of every kind that users have, good and bad, as bytes."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

ROTATED = 6  # EXIF: the picture must be turned by 90 degrees clockwise to be upright


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """Red grows to the right, green downwards; blue is constant. Survives a JPEG nearly unchanged."""
    y, x = np.mgrid[:height, :width]
    channels = (255 * x / max(1, width - 1), 255 * y / max(1, height - 1), np.full((height, width), 60))
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def mask(width: int = 40, height: int = 30) -> Image.Image:
    """White (paint) in the left half of the upper half, black (keep) elsewhere."""
    values = np.zeros((height, width), dtype=np.uint8)
    values[: height // 2, : width // 2] = 255
    return Image.fromarray(values)


def with_orientation(image: Image.Image, orientation: int, form: str = "PNG", **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, form, exif=exif, **options)


def png_16_bit_rgb(values: np.ndarray) -> bytes:
    """uint16 H W 3 -> a 16-bit RGB PNG, which Pillow reads but cannot write."""
    height, width, _ = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines)) + _chunk(b"IEND", b"")


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises `width` x `height` pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + _chunk(b"IEND", b"")
    )


def animated(form: str) -> bytes:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:])


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
