"""Bytes of a file -> uint8 arrays. Everything is checked before anything is decoded.

Used after conversion to sRGB: JPEG, PNG, WEBP, TIFF and AVIF by content (whatever the extension), CMYK, grey, palette,
alpha (on white), 16-bit (scaled), EXIF-rotated, with a colour profile (a broken one is as none). Refused as BadRow:
other formats, animations and other files of several pictures, truncated files, bombs, and what Pillow would show as
another picture than it is (`_odd`).
"""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError

from inpaint.data.quarantine import Reason
from inpaint.errors import BadRow, InpaintError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16L", "I;16B")
"""Of Pillow's images, those whose pixels mean one thing."""
LINES = 64  # converted at a time
PAINT = 128  # a hole's value from which a pixel counts as painted
_ORIENTATION, _SUBFILE_TYPE, _DNG_VERSION = 0x0112, 254, 50706
_DAMAGED = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError)
BROKEN = (*_DAMAGED, struct.error, zlib.error)
"""What Pillow's decoders raise on damaged files."""
_SIGNATURES = {b"GIF8": "GIF", b"BM": "BMP", b"%PDF": "PDF", b"<svg": "SVG"}
_OURS = {b"\xff\xd8\xff": "a JPEG", b"\x89PNG": "a PNG", b"RIFF": "a WEBP"}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is refused before anything is decoded."""

    max_bytes: int = 64 * 2**20
    """Of one file."""
    max_pixels: int = 50_000_000
    """Width times height as the file's header states them."""

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.max_pixels < 1:
            raise InpaintError(f"limits must be positive: max_bytes {self.max_bytes}, max_pixels {self.max_pixels}")


DEFAULT_LIMITS = Limits()


def open_image(data: bytes, field: str, limits: Limits) -> Image.Image:
    """Check everything that the header tells; pixels are not decoded yet. Raises BadRow."""
    if not data:
        raise BadRow(field, Reason.ZERO_BYTES, "the file is empty: copy it again")
    if len(data) > limits.max_bytes:
        raise BadRow(field, Reason.TOO_MANY_BYTES, f"{len(data):,} bytes, the limit is {limits.max_bytes:,}")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        odd, pictures = _odd(image, data), _pictures(image)
    except UnidentifiedImageError as error:
        raise BadRow(field, *_unknown(data)) from error
    except Image.DecompressionBombError as error:
        raise BadRow(field, Reason.TOO_MANY_PIXELS, f"the limit is {limits.max_pixels:,}") from error
    except BROKEN as error:
        raise BadRow(field, Reason.TRUNCATED, f"its header cannot be read ({error}): copy or save it again") from error
    width, height = image.size
    if width * height > limits.max_pixels:
        raise BadRow(
            field,
            Reason.TOO_MANY_PIXELS,
            f"{width} x {height} = {width * height:,} pixels, the limit is {limits.max_pixels:,}: scale it down",
        )
    if odd is not None:
        raise BadRow(field, Reason.WRONG_FORMAT, odd)
    if pictures > 1:
        raise BadRow(field, Reason.ANIMATED, f"{pictures} pictures in one file: save one of them")
    return image


def _unknown(data: bytes) -> tuple[Reason, str]:
    """What content is that no decoder takes."""
    form = next((name for start, name in _SIGNATURES.items() if data.startswith(start)), None)
    if form is not None:
        return Reason.WRONG_FORMAT, f"it is {form}: save it as JPEG, PNG or WEBP"
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC:
        detail = "it is HEIC: convert it with `heif-convert photo.heic photo.jpg` (package libheif-examples), or "
        return Reason.WRONG_FORMAT, detail + "on a Mac with `sips -s format jpeg photo.heic --out photo.jpg`"
    if data.startswith(_TIFF):
        return Reason.WRONG_FORMAT, "it is a TIFF of a kind that is not read: save it with 8 or 16 bits per channel"
    ours = next((name for start, name in _OURS.items() if data.startswith(start)), None)
    ours = "an AVIF" if data[4:12] == b"ftypavif" else ours
    if ours is not None:
        return Reason.TRUNCATED, f"it is {ours} that cannot be read: copy or save it again"
    return Reason.NOT_AN_IMAGE, f"its content is none of {', '.join(FORMATS)}: export it again"


def _pictures(image: Image.Image) -> int:
    """How many are in the file. A JPEG with several (MPO, which many phones write) is one photo with previews."""
    return getattr(image, "n_frames", 1) if image.format != "MPO" else 1


def _odd(image: Image.Image, data: bytes) -> str | None:
    """Why Pillow would show another picture than the file holds, and what to do; None: it would not."""
    if image.mode not in MODES:
        held = {"F": "fractions (32-bit float)", "I": "numbers with a sign or of 32 bits", "LAB": "Lab colours"}
        return f"its pixels are {held.get(image.mode, image.mode)}: save it as RGB with 8 or 16 bits per channel"
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    tags = image.tag_v2
    if _DNG_VERSION in tags or tags.get(_SUBFILE_TYPE, 0) & 1 or data[8:10] == b"CR":
        return "it is a camera's raw file, of which only a preview could be read: develop it into a TIFF or JPEG"
    bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    if bits not in (1, 2, 4, 8, 16):
        return f"its pixels have {bits} bits per channel: save it with 8 or 16"
    if bits == 16 and len(image.getbands()) > 1 and tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2:
        return "its 16-bit channels lie one behind the other (planar): save it with interleaved channels"
    if bits == 16 and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        return "its 16-bit numbers count from white (white is zero): save it with black as zero"
    return None


def load_rgb(data: bytes, field: str, limits: Limits, target: tuple[int, int] | None = None) -> Image.Image:
    """An RGB image, upright.

    `target`: the height and width that the largest crop of their aspect will be resized to; a JPEG that is far larger
    is then decoded at 1/2, 1/4 or 1/8 of its size (never below twice the target), which is several times faster, and
    16 bits of grey become "L", to be made RGB when they are few.
    """
    image = open_image(data, field, limits)
    if target is not None and image.format == "JPEG":
        height, width = target[::-1] if _orientation(image) >= 5 else target  # its pixels lie on their side
        scale = min(1.0, 2.0 * max(height / image.height, width / image.width))
        image.draft(None, (max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    image = upright(image, field)
    if target is not None and image.mode.startswith("I") and "icc_profile" not in image.info:
        return to_grey(image)
    return to_rgb(image)


def load_hole(data: bytes, field: str, limits: Limits) -> Image.Image:
    """A grey image ("L"), upright: 255 = paint (white), 0 = keep. Raises BadRow, also for transparent pixels: in some
    programs those are what shall be painted, in others they are what shall be kept."""
    image = upright(open_image(data, field, limits), field)
    alpha = alpha_of(image)
    if alpha is not None and np.asarray(alpha).min() < 255:
        detail = (
            "white and black say what shall be painted, and it has transparent pixels: save it without transparency"
        )
        raise BadRow(field, Reason.TRANSPARENT_MASK, detail)
    return to_grey(image)


def check_hole(hole: np.ndarray, field: str) -> None:
    """Raise BadRow where a hole, uint8 H W, has no pixel to paint or none to keep."""
    painted = int(np.count_nonzero(hole >= PAINT))
    if painted == 0:
        raise BadRow(field, Reason.EMPTY_HOLE, "no pixel is white: white is what shall be painted; is it inverted?")
    if painted == hole.size:
        raise BadRow(field, Reason.FULL_HOLE, "every pixel is white: black is what shall be kept; is it inverted?")


def upright(image: Image.Image, field: str) -> Image.Image:
    """Decode what `open_image` let through, and turn it as its EXIF says; the mode stays. Raises BadRow."""
    try:
        image.load()
    except BROKEN as error:
        raise BadRow(field, Reason.TRUNCATED, f"its pixels cannot be read ({error}): copy or save it again") from error
    try:
        return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
    except BROKEN:
        return image  # the pixels are good and nobody can read which way is up: viewers show it like this


def _orientation(image: Image.Image) -> int:
    """As EXIF numbers it; 1, upright, where nobody can read it."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except BROKEN:
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode, as sRGB; transparency on white, 16 bits scaled."""
    if image.mode == "RGB" and not image.info.keys() & {"icc_profile", "transparency"}:
        return image
    return _in_parts(image, "RGB", lambda part: on_white(*to_rgb_and_alpha(part)))


def to_rgb_and_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """RGB, as sRGB, and the alpha channel ("L"), where there is one."""
    profile, alpha = image.info.get("icc_profile", b""), alpha_of(image)
    if image.mode.startswith("I"):
        image = to_grey(image)
    elif image.mode not in ("RGB", "L", "CMYK"):
        image = own_rgb(image)
    return _as_srgb(image, profile), alpha


def own_rgb(image: Image.Image) -> Image.Image:
    """RGB of an 8-bit image, its profile's own numbers, without its alpha channel."""
    # Palettes by way of RGBA: Pillow warns of the others, though nothing is wrong.
    return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def on_white(rgb: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """What an image with an alpha channel looks like on white; the same image without one."""
    if alpha is None:
        return rgb
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def rgb_profile(image: Image.Image) -> bytes:
    """The ICC profile of an image's numbers in mode RGB; empty where they are sRGB's, or it is of no use."""
    profile: bytes = image.info.get("icc_profile", b"")
    is_rgb = image.mode in ("RGB", "RGBA", "P")
    return profile if is_rgb and profile and _transform(profile, "RGB") is not None else b""


def from_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An RGB image with the numbers of an `rgb_profile`."""
    back = _transform(profile, "RGB", back=True) if profile else None
    return image if back is None else ImageCms.applyTransform(image, back) or image


def _as_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An image in mode RGB, L or CMYK -> RGB, its numbers those of sRGB."""
    change = _transform(profile, image.mode) if profile else None
    if change is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    return ImageCms.applyTransform(image, change) or image


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str, *, back: bool = False) -> ImageCms.ImageCmsTransform | None:
    """To sRGB, or back. None for a profile that is broken or of another mode, which viewers overlook, too, and where
    nothing is to do: it is sRGB."""
    try:
        theirs, ours = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        if ImageCms.getProfileDescription(theirs).startswith("sRGB"):
            return None
        # Threads share it, which the library's own cache does not bear.
        flags = ImageCms.Flags.NOCACHE | ImageCms.Flags.BLACKPOINTCOMPENSATION
        how = ImageCms.Intent.RELATIVE_COLORIMETRIC
        if back:
            return ImageCms.buildTransform(ours, theirs, "RGB", mode, how, flags)
        return ImageCms.buildTransform(theirs, ours, mode, "RGB", how, flags)
    except (ImageCms.PyCMSError, *BROKEN):
        return None


def to_grey(image: Image.Image) -> Image.Image:
    """Grey ("L") of any mode; an alpha channel is ignored, 16 bits scaled."""
    return _in_parts(image, "L", _scaled_16_bit) if image.mode.startswith("I") else image.convert("L")


def alpha_of(image: Image.Image) -> Image.Image | None:
    """The alpha channel ("L", 0 = transparent), also of a palette's transparent entries; None where there is none."""
    if image.mode.startswith("I") or not image.has_transparency_data:
        return None
    return (image if image.mode in ("RGBA", "LA", "PA") else image.convert("RGBA")).getchannel("A")


def _in_parts(image: Image.Image, mode: str, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """An image of `mode`, changed some lines at a time: what lies between would take several times its memory."""
    changed = Image.new(mode, image.size)
    for top in range(0, image.height, LINES):
        changed.paste(change(image.crop((0, top, image.width, min(image.height, top + LINES)))), (0, top))
    return changed


def _scaled_16_bit(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips at 255, which turns nearly every 16-bit image white.
    return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
