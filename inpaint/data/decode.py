"""Bytes of a file -> uint8 arrays. Everything is checked before anything is decoded.

Used after conversion to sRGB: JPEG, PNG, WEBP, TIFF and AVIF by content (whatever the extension), CMYK, grey, palette,
alpha (on white), 16-bit (scaled), EXIF-rotated, with a colour profile (a broken one is as none). Refused as BadRow:
other formats, animations and other files of several pictures, truncated files, bombs.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from inpaint.data.quarantine import Reason
from inpaint.errors import BadRow, InpaintError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
LINES = 64  # decoded at a time where numbers must be wider
PAINT = 128  # a hole's value from which a pixel counts as painted
_ORIENTATION = 0x0112
BROKEN = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error, zlib.error)
"""What Pillow's decoders raise on damaged files."""
_SIGNATURES = {b"GIF8": "GIF", b"BM": "BMP", b"%PDF": "PDF", b"<svg": "SVG"}
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
    except UnidentifiedImageError as error:
        form = next((name for start, name in _SIGNATURES.items() if data.startswith(start)), None)
        if form is not None:
            raise BadRow(field, Reason.WRONG_FORMAT, f"it is {form}: save it as JPEG, PNG or WEBP") from error
        if data[4:8] == b"ftyp" and data[8:12] in _HEIC:
            detail = "it is HEIC: convert it with `heif-convert photo.heic photo.jpg` (package libheif-examples), or "
            detail += "on a Mac with `sips -s format jpeg photo.heic --out photo.jpg`"
            raise BadRow(field, Reason.WRONG_FORMAT, detail) from error
        if data[4:12] == b"ftypavif":
            raise BadRow(field, Reason.TRUNCATED, "it is an AVIF that cannot be read: copy or save it again") from error
        detail = f"its content is none of {', '.join(FORMATS)}: export it again"
        raise BadRow(field, Reason.NOT_AN_IMAGE, detail) from error
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
    # A JPEG with several pictures (MPO, which many phones write) is a photo with previews, not an animation.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise BadRow(field, Reason.ANIMATED, f"{getattr(image, 'n_frames', 2)} pictures in one file: save one of them")
    if image.mode == "F":
        raise BadRow(field, Reason.WRONG_FORMAT, "its pixels are fractions (32-bit float): save it with 8 or 16 bits")
    return image


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
    """A grey image ("L"), upright: 255 = paint (white), 0 = keep. An alpha channel of a mask is ignored."""
    return to_grey(upright(open_image(data, field, limits), field))


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
    return on_white(*to_rgb_and_alpha(image))


def to_rgb_and_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """RGB, as sRGB, and the alpha channel ("L"), where there is one."""
    profile, alpha = image.info.get("icc_profile", b""), alpha_of(image)
    if image.mode.startswith("I"):
        image = _scaled_16_bit(image)
    elif alpha is not None:
        image = image.convert("RGBA").convert("RGB")
    elif image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    return _as_srgb(image, profile), alpha


def on_white(rgb: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """What an image with an alpha channel looks like on white; the same image without one."""
    if alpha is None:
        return rgb
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


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
    return _scaled_16_bit(image) if image.mode.startswith("I") else image.convert("L")


def alpha_of(image: Image.Image) -> Image.Image | None:
    """The alpha channel ("L", 0 = transparent), also of a palette's transparent entries; None where there is none."""
    if image.mode.startswith("I") or not image.has_transparency_data:
        return None
    return image.convert("RGBA").getchannel("A")


def _scaled_16_bit(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips at 255, which turns nearly every 16-bit image white. Some lines at a time: all of
    # them as wider numbers would take ten times the pixels' own memory.
    grey = Image.new("L", image.size)
    for top in range(0, image.height, LINES):
        part = image.crop((0, top, image.width, min(image.height, top + LINES)))
        values = np.asarray(part).astype(np.int64).clip(0, 65535)
        grey.paste(Image.fromarray(((values + 128) // 257).astype(np.uint8)), (0, top))
    return grey
