"""The receipt in every picture: what it was painted with, so that it can be painted again and told from a photograph.

PNG: an iTXt chunk `inpaint` with JSON (and A1111's tEXt `parameters` where that dialect asked). JPEG, WEBP: the same
JSON as EXIF UserComment. The prompt is not in it: product pictures are published, prompts need not be.
"""

import io
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from inpaint.data import decode
from inpaint.errors import InpaintError
from inpaint.models.info import BaseInfo
from inpaint.serve.service import AdapterUse, PaintOrder
from inpaint.serve.wire.wish import Encoding

CHUNK = "inpaint"
SOFTWARE = f"inpaint {version('inpaint')}"
_ASCII = b"ASCII\0\0\0"
_SUBSAMPLING_444 = 0


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a picture was painted with; with photo, hole and prompt it gives the same picture again."""

    software: str
    base: str
    base_revision: str
    adapters: tuple[AdapterUse, ...]
    seed: int
    sampling: dict[str, Any]
    """Of a base its `SamplingSettings`, all decided; of a DDPM its `PixelSampling` and what its request adds."""


def receipt_of(order: PaintOrder, base: BaseInfo) -> Receipt:
    """The receipt of an order."""
    request = order.request
    return Receipt(
        software=SOFTWARE,
        base=base.name,
        base_revision=base.revision,
        adapters=order.adapters,
        seed=request.seed,
        sampling=asdict(request.sampling),
    )


def encode(image: np.ndarray, encoding: Encoding, receipt: Receipt, compress_level: int, infotext: str = "") -> bytes:
    """H x W x 3 uint8 -> a file with its receipt."""
    file = io.BytesIO()
    picture = Image.fromarray(image)
    text = json.dumps(asdict(receipt))
    if encoding.format == "png":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt(CHUNK, text)
        chunks.add_text("Software", receipt.software)
        if infotext:
            chunks.add_text("parameters", infotext)
        picture.save(file, "PNG", pnginfo=chunks, compress_level=compress_level)
        return file.getvalue()
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = receipt.software
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _ASCII + text.encode("ascii")
    options = {"subsampling": _SUBSAMPLING_444} if encoding.format == "jpeg" else {}
    picture.save(file, encoding.format.upper(), quality=encoding.quality, exif=exif, **options)
    return file.getvalue()


def read_receipt(data: bytes) -> Receipt:
    """The receipt of a file's bytes. Raises InpaintError where there is none that can be read."""
    text = _read(data, CHUNK)
    if not text:
        raise InpaintError("the picture has no receipt: it is not ours, or was saved again without its metadata")
    try:
        found = json.loads(text)
        return Receipt(**{**found, "adapters": tuple(AdapterUse(**use) for use in found["adapters"])})
    except (ValueError, TypeError, KeyError) as error:
        raise InpaintError(f"the picture's receipt is not of this version ({error})") from error


def read_infotext(data: bytes) -> str:
    """A1111's `parameters` text of a PNG's bytes; empty where there is none. Raises InpaintError: not an image."""
    return _read(data, "parameters")


def _read(data: bytes, chunk: str) -> str:
    try:
        with Image.open(io.BytesIO(data), formats=decode.FORMATS) as image:
            if isinstance(image, PngImagePlugin.PngImageFile):
                # Of the chunks before the pixels: `image.text` would decode these.
                return str(image.info.get(chunk, ""))
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except (*decode.BROKEN, Image.DecompressionBombError) as error:
        raise InpaintError(f"not a PNG, JPEG or WEBP that can be read ({error}): give the file as answered") from error
    if chunk == CHUNK and isinstance(comment, bytes) and comment.startswith(_ASCII):
        return comment.removeprefix(_ASCII).decode("ascii", "replace")
    return ""
