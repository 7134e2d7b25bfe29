"""Pictures as files, each with its receipt: what it was painted with, to paint it again and to tell it from a photo.

PNG: an iTXt chunk `inpaint` with JSON (and A1111's tEXt `parameters` where that dialect asked). JPEG, WEBP: the same
JSON as EXIF UserComment. The prompt is not in it: product pictures are published, prompts need not be.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

from inpaint.data import decode
from inpaint.errors import InpaintError
from inpaint.serve.service import AdapterUse

CHUNK = "inpaint"
SOFTWARE = f"inpaint {version('inpaint')}"
_ASCII = b"ASCII\0\0\0"


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How pictures are written."""

    format: str = "png"
    """png, jpeg or webp. Only png keeps the kept pixels bit for bit."""
    quality: int = 95
    """1 to 100, of jpeg and webp."""
    compress_level: int = 1
    """0 to 9 as zlib's, of png."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a picture was painted with; with photo, hole and prompt it gives the same picture again."""

    software: str = SOFTWARE
    base: str
    """Name of the model."""
    base_revision: str
    adapters: tuple[AdapterUse, ...] = ()
    seed: int
    sampling: Mapping[str, Any]
    """The request's sampling settings by their names."""


def encode(picture: Image.Image, encoding: Encoding, receipt: Receipt, infotext: str = "") -> bytes:
    """A picture in RGB or RGBA -> a file with its receipt and its colour profile, and with A1111's `parameters` where
    there is an infotext. A JPEG has no alpha: what is transparent is on white."""
    file = io.BytesIO()
    profile = picture.info.get("icc_profile")
    text = json.dumps(asdict(receipt))
    if encoding.format == "png":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt(CHUNK, text)
        chunks.add_text("Software", receipt.software)
        if infotext:
            chunks.add_text("parameters", infotext)
        picture.save(file, "PNG", pnginfo=chunks, compress_level=encoding.compress_level, icc_profile=profile)
        return file.getvalue()
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = receipt.software
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _ASCII + text.encode("ascii")
    options = {}
    if encoding.format == "jpeg":
        options["subsampling"] = "4:4:4"
        if picture.mode == "RGBA":
            picture = decode.on_white(picture.convert("RGB"), picture.getchannel("A"))
    picture.save(file, encoding.format.upper(), quality=encoding.quality, exif=exif, icc_profile=profile, **options)
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
