"""One row's bytes -> one sample: geometry, hole, text. Pure: a function of bytes, settings, seed and position.

Promise: the crop follows the row's own mask, which it holds wholly where it can, else as much of it as it can; nothing
of a mask is lost in resizing.
"""

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypedDict

import numpy as np
from PIL import Image

from inpaint.data.decode import DEFAULT_LIMITS, PAINT, Limits, load_hole, load_rgb
from inpaint.data.holes import Box, Feathered, Grown, Hole, OwnMask, Sometimes, cover, is_empty
from inpaint.data.rows import Row
from inpaint.errors import InpaintError
from inpaint.randomness import generator

PROMPT_FIELDS = ("token", "prompt", "category")


class Crop(StrEnum):
    """Which part of an image of another aspect is used."""

    CENTRE = "centre"
    RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """How a row becomes a sample."""

    height: int
    """Of what the model sees, in pixels; a multiple of 8. The largest crop of this aspect is resized to it."""
    width: int
    """As `height`."""
    crop: Crop = Crop.CENTRE
    """Which part of an image of another aspect is used, where a mask leaves the choice."""
    flip_probability: float = 0.0
    """Share of samples that are mirrored left to right; 0 where products carry text."""
    hole: Hole = Sometimes(Feathered(Grown(OwnMask())))
    """What is to be painted."""
    caption_dropout: float = 0.1
    """Share of samples with an empty prompt and label, for classifier-free guidance."""
    prompt_format: str = "{prompt}"
    """Built from `{token}`, `{prompt}` and `{category}`, such as `"{token} background, {prompt}"`."""
    tokens: Mapping[str, str] = field(default_factory=dict)
    """Category -> its token, for `{token}`."""
    limits: Limits = DEFAULT_LIMITS
    """What is refused before decoding."""

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            if getattr(self, name) < 8 or getattr(self, name) % 8:
                raise InpaintError(f"{name} {getattr(self, name)} is not a positive multiple of 8")
        for name in ("flip_probability", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise InpaintError(f"{name} {getattr(self, name)} is not between 0 and 1")
        try:
            used = {name for _, name, _, _ in string.Formatter().parse(self.prompt_format) if name is not None}
        except ValueError as error:
            raise InpaintError(f"prompt_format {self.prompt_format!r}: {error}") from error
        if not used <= set(PROMPT_FIELDS):
            unknown = ", ".join(sorted(used - set(PROMPT_FIELDS)))
            raise InpaintError(
                f"prompt_format {self.prompt_format!r} uses {unknown!r}; known fields: {', '.join(PROMPT_FIELDS)}"
            )

    def check_categories(self, categories: Iterable[str | None]) -> None:
        """Raise InpaintError where a row's category has no token, or a row has none, and the prompt needs it."""
        uses_token = "{token" in self.prompt_format
        for category in categories:
            if category is None and (uses_token or "{category" in self.prompt_format):
                raise InpaintError(
                    f"prompt_format {self.prompt_format!r} needs a category and some rows have none: "
                    "fill the category column, or leave the field out of the format"
                )
            if uses_token and category not in self.tokens:
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
    label: str


def make_sample(row: Row, files: RowBytes, settings: ReadSettings, seed: int, position: int) -> Sample:
    """Decode, crop, resize, flip, make the hole, format the text.

    Returns `image` and `input`, uint8 H W 3, `hole`, uint8 H W (never empty), `prompt` and `label`. Raises BadRow where
    a file cannot be decoded.
    """
    shape, limits = (settings.height, settings.width), settings.limits
    image = load_rgb(files.image, "output", limits, target=shape)
    mask = None
    if files.hole is not None and settings.hole.uses_own:
        mask = np.asarray(load_hole(files.hole, "mask", limits)) >= PAINT
        mask = mask if mask.any() else None  # it was changed since it was inspected
    box = _choose_box(image, mask, settings, generator(seed, "crop", position))
    flip = bool(generator(seed, "flip", position).random() < settings.flip_probability)

    own = None if mask is None else cover(mask, shape, box).astype(np.uint8) * 255
    if own is not None and flip:
        own = np.ascontiguousarray(own[:, ::-1])
    hole = settings.hole.draw(own, *shape, generator(seed, "hole", position))
    assert hole.shape == shape and not is_empty(hole), f"{settings.hole} drew a hole of {hole.shape}, or none"
    image_HW3 = _resized(image, box, shape, flip)
    input_HW3 = image_HW3
    if files.input is not None:
        input_HW3 = _resized(load_rgb(files.input, "input", limits, target=shape), box, shape, flip)
    prompt, label = text_of(row, settings, seed, position)
    return {"image": image_HW3, "input": input_HW3, "hole": hole, "prompt": prompt, "label": label}


def text_of(row: Row, settings: ReadSettings, seed: int, position: int) -> tuple[str, str]:
    """The formatted prompt and the label, both "" where the caption is dropped."""
    if generator(seed, "caption", position).random() < settings.caption_dropout:
        return "", ""
    category = row.category or ""
    token = settings.tokens.get(category, "")
    return settings.prompt_format.format(token=token, prompt=row.prompt, category=category), row.label or ""


def crop_size(width: int, height: int, aspect: float) -> tuple[float, float]:
    """Width and height of the largest crop whose height is `aspect` times its width, in pixels."""
    return min(width, height / aspect), min(height, width * aspect)


def _choose_box(image: Image.Image, mask: np.ndarray | None, settings: ReadSettings, rng: np.random.Generator) -> Box:
    """The largest box of the settings' aspect: in the centre or anywhere, moved to where the mask is."""
    width, height = image.size if mask is None else (mask.shape[1], mask.shape[0])
    wide, high = crop_size(width, height, settings.height / settings.width)
    x, y = rng.random(2) if settings.crop is Crop.RANDOM else (0.5, 0.5)
    left, top = x * (width - wide), y * (height - high)
    if mask is not None:
        left = _followed(np.any(mask, axis=0, keepdims=True)[0], left, wide)
        top = _followed(np.any(mask, axis=1, keepdims=True)[:, 0], top, high)
    return left / width, top / height, (left + wide) / width, (top + high) / height


def _followed(painted: np.ndarray, start: float, length: float) -> float:
    """The nearest start at which `length` pixels hold all that is painted, bool[N], or else lie within it."""
    places = np.flatnonzero(painted)
    ends = (float(places[0]), float(places[-1] + 1) - length)
    start = min(max(start, min(ends), 0.0), max(ends), len(painted) - length)
    if not painted[int(np.ceil(start)) : int(start + length)].any():
        # A gap in a mask that is larger than the crop: where the crop holds the most of it.
        held = np.searchsorted(places, places + int(length)) - np.arange(len(places))
        start = min(float(places[held.argmax()]), len(painted) - length)
    return start


def _resized(image: Image.Image, box: Box, shape: tuple[int, int], flip: bool) -> np.ndarray:
    left, top, right, bottom = box
    pixels = (left * image.width, top * image.height, right * image.width, bottom * image.height)
    # reducing_gap averages whole blocks first: several times faster on large images, no visible difference.
    small = image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC, box=pixels, reducing_gap=3.0)
    array = np.asarray(small)
    return np.ascontiguousarray(array[:, ::-1]) if flip else array
