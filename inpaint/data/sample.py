"""One row's bytes -> one sample: geometry, hole, prompt. Pure: a function of bytes, settings, seed and position."""

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypedDict

import numpy as np
from PIL import Image

from inpaint.data import holes
from inpaint.data.decode import DEFAULT_LIMITS, Limits, load_hole, load_rgb
from inpaint.data.manifest import Row
from inpaint.data.random_holes import RandomHoles, random_hole
from inpaint.errors import InpaintError
from inpaint.randomness import generator

CROP_TRIES = 8
PROMPT_FIELDS = ("token", "prompt", "category")


class Crop(StrEnum):
    """Which square of an oblong image is used."""

    CENTRE = "centre"
    RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """How a row becomes a sample."""

    resolution: int
    """Side of the square that the model sees, in pixels; a multiple of 8. The short side is resized to it."""
    crop: Crop = Crop.CENTRE
    """Which square of an oblong image is used."""
    flip_probability: float = 0.0
    """Share of samples that are mirrored left to right; 0 where products carry text."""
    dilate_max: float = 0.03
    """A hole grows by up to this share of the resolution, uniform."""
    feather_max: float = 0.02
    """A hole's edge is softened, inside it, over up to this share of the resolution, uniform."""
    full_hole_probability: float = 0.25
    """Share of samples whose hole is the whole image."""
    random_holes: RandomHoles | None = None
    """Holes drawn at random in place of the rows' own; unset: a row's mask, or all but a random centre crop."""
    caption_dropout: float = 0.1
    """Share of samples with an empty prompt, for classifier-free guidance."""
    prompt_format: str = "{prompt}"
    """Built from `{token}`, `{prompt}` and `{category}`, such as `"{token} background, {prompt}"`."""
    tokens: Mapping[str, str] = field(default_factory=dict)
    """Category -> its token, for `{token}`."""
    limits: Limits = DEFAULT_LIMITS
    """What is refused before decoding."""

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.resolution % 8:
            raise InpaintError(f"resolution {self.resolution} is not a positive multiple of 8")
        for name in ("flip_probability", "full_hole_probability", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise InpaintError(f"{name} {getattr(self, name)} is not between 0 and 1")
        for name in ("dilate_max", "feather_max"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise InpaintError(f"{name} {getattr(self, name)} is not between 0 and 0.5 (a share of the resolution)")
        try:
            used = {name for _, name, _, _ in string.Formatter().parse(self.prompt_format) if name is not None}
        except ValueError as error:
            raise InpaintError(f"prompt_format {self.prompt_format!r}: {error}") from error
        if not used <= set(PROMPT_FIELDS):
            unknown = ", ".join(sorted(used - set(PROMPT_FIELDS)))
            raise InpaintError(
                f"prompt_format {self.prompt_format!r} uses {unknown!r}; known fields: {', '.join(PROMPT_FIELDS)}"
            )

    @property
    def uses_token(self) -> bool:
        return "{token" in self.prompt_format

    @property
    def uses_category(self) -> bool:
        return "{category" in self.prompt_format

    def check_categories(self, categories: Iterable[str | None]) -> None:
        """Raise InpaintError where a row's category has no token, or a row has none, and the prompt needs it."""
        for category in categories:
            if category is None and (self.uses_token or self.uses_category):
                raise InpaintError(
                    f"prompt_format {self.prompt_format!r} needs a category and some rows have none: "
                    "fill the category column, or leave the field out of the format"
                )
            if self.uses_token and category not in self.tokens:
                raise InpaintError(
                    f"category {category!r} has no token; tokens has {', '.join(sorted(self.tokens)) or 'none'}"
                )


@dataclass(frozen=True, kw_only=True)
class RowBytes:
    """The files of one row, as they are on disk."""

    image: bytes
    input: bytes | None = None
    hole: bytes | None = None


class Sample(TypedDict):
    """One row of a batch; see docs/architecture.md."""

    image: np.ndarray
    input: np.ndarray
    hole: np.ndarray
    prompt: str


Box = tuple[float, float, float, float]


def make_sample(row: Row, files: RowBytes, settings: ReadSettings, seed: int, position: int) -> Sample:
    """Decode, crop, resize, flip, make the hole, format the prompt.

    Returns `image` and `input`, uint8 H W 3, `hole`, uint8 H W (never empty), and `prompt`. Raises BadRow where a
    file cannot be decoded.
    """
    side, limits = settings.resolution, settings.limits
    image = load_rgb(files.image, "output", limits, target=side)
    own_hole = None if settings.random_holes is not None else files.hole
    mask = load_hole(own_hole, "mask", limits) if own_hole is not None else None
    square, hole = _choose_square(image, mask, settings, seed, position)
    flip = bool(generator(seed, "flip", position).random() < settings.flip_probability)

    image_HW3 = _resized(image, square, side, Image.Resampling.BICUBIC, flip)
    if settings.random_holes is not None:
        hole = random_hole(side, side, generator(seed, "random hole", position), settings.random_holes)
    elif hole is None:
        hole = holes.all_but_centre_crop(side, side, generator(seed, "centre crop", position))
    elif flip:
        hole = np.ascontiguousarray(hole[:, ::-1])
    hole = holes.augment(
        hole,
        generator(seed, "hole", position),
        dilate_max=settings.dilate_max,
        feather_max=settings.feather_max,
        full_probability=settings.full_hole_probability,
    )
    if files.input is not None:
        seen = load_rgb(files.input, "input", limits, target=side)
        input_HW3 = _resized(seen, square, side, Image.Resampling.BICUBIC, flip)
    else:
        input_HW3 = image_HW3
    return {"image": image_HW3, "input": input_HW3, "hole": hole, "prompt": prompt_of(row, settings, seed, position)}


def prompt_of(row: Row, settings: ReadSettings, seed: int, position: int) -> str:
    """The formatted prompt, or "" where the caption is dropped."""
    if generator(seed, "caption", position).random() < settings.caption_dropout:
        return ""
    category = row.category or ""
    return settings.prompt_format.format(token=settings.tokens.get(category, ""), prompt=row.prompt, category=category)


def _choose_square(
    image: Image.Image, mask: Image.Image | None, settings: ReadSettings, seed: int, position: int
) -> tuple[Box, np.ndarray | None]:
    """A square, in shares of the width and height, and the mask in it, uint8 side side.

    Tries other keyed squares while the mask is empty in them; then the first square with the whole image as the hole.
    """
    rng = generator(seed, "crop", position)
    first: Box | None = None
    for _ in range(CROP_TRIES):
        square = _square(image.width, image.height, settings.crop, rng)
        if mask is None:
            return square, None
        first = first or square
        hole = _resized(mask, square, settings.resolution, Image.Resampling.BILINEAR, flip=False)
        if not holes.is_empty(hole):
            return square, hole
        if settings.crop is Crop.CENTRE:
            break
    assert first is not None
    return first, np.full((settings.resolution, settings.resolution), 255, dtype=np.uint8)


def _square(width: int, height: int, crop: Crop, rng: np.random.Generator) -> Box:
    short = min(width, height)
    x, y = (width - short) / 2, (height - short) / 2
    if crop is Crop.RANDOM:
        x, y = rng.random() * (width - short), rng.random() * (height - short)
    return x / width, y / height, (x + short) / width, (y + short) / height


def _resized(image: Image.Image, square: Box, side: int, how: Image.Resampling, flip: bool) -> np.ndarray:
    left, top, right, bottom = square
    box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
    # reducing_gap averages whole blocks first: several times faster on large images, no visible difference.
    small = image.resize((side, side), how, box=box, reducing_gap=3.0)
    array = np.asarray(small)
    return np.ascontiguousarray(array[:, ::-1]) if flip else array
