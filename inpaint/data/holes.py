"""Holes changed at random: grown, softened, or replaced by the whole image; numpy and Pillow only.

A hole is uint8 H W: 0 keep .. 255 paint, and a pixel counts as painted from 128. Sizes are shares of the
image, so a hole means the same at 64 and at 1024 pixels.

Promise: a hole that comes in with a painted pixel goes out with one.
"""

import numpy as np
from PIL import Image, ImageFilter

from inpaint.data.decode import PAINT


def is_empty(hole: np.ndarray) -> bool:
    """Whether a hole, uint8 H W, has no painted pixel."""
    return not bool((hole >= PAINT).any())


def augment(
    hole: np.ndarray,
    rng: np.random.Generator,
    *,
    dilate_max: float,
    feather_max: float,
    full_probability: float,
) -> np.ndarray:
    """A hole, uint8 H W -> another.

    With `full_probability` the whole image. Else grown by up to `dilate_max` and softened over up to `feather_max`
    of the short side, both uniform.
    """
    assert not is_empty(hole), "an empty hole cannot be augmented"
    # All numbers are drawn first, so that changing one setting does not change what the others draw.
    full, grow, soften = rng.random(3)
    if full < full_probability:
        return np.full_like(hole, 255)
    short = min(hole.shape)
    grown = dilate(hole, round(grow * dilate_max * short))
    return feather(grown, round(soften * feather_max * short))


def dilate(hole: np.ndarray, radius: int) -> np.ndarray:
    """Grow by `radius` pixels in each direction (the largest value in a square window), uint8 H W."""
    if radius < 1:
        return hole
    return _spread(_spread(hole, radius).T, radius).T


def _spread(values: np.ndarray, radius: int) -> np.ndarray:
    """The largest value in rows y - radius .. y + radius, by windows that double: log2(radius) passes."""
    # What numpy does here keeps the order in memory, so that columns, as rows of the transposed, cost what rows cost.
    window, width = np.pad(values, ((radius, radius), (0, 0))), 1
    while width < 2 * radius + 1:
        step = min(width, 2 * radius + 1 - width)
        window = np.maximum(window[:-step], window[step:])
        width += step
    return window


def feather(hole: np.ndarray, radius: int) -> np.ndarray:
    """Soften the edge inside the hole over about `radius` pixels, uint8 H W; pixels outside stay as they were.

    A hole so thin that softening would empty it comes back unchanged.
    """
    if radius < 1:
        return hole
    # The edge of the image is not an edge of the hole: padding with copies keeps it hard.
    padded = Image.fromarray(np.pad(hole, radius, mode="edge"))
    blurred = np.asarray(padded.filter(ImageFilter.BoxBlur(radius)))[radius:-radius, radius:-radius]
    # A straight edge blurs to one half on the edge itself and to one at `radius` inside.
    ramp = np.clip(2 * blurred.astype(np.int16) - 255, 0, 255).astype(np.uint8)
    soft = np.minimum(hole, ramp)
    return hole if is_empty(soft) else soft


def all_but_centre_crop(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """For rows without a mask: keep a centred rectangle of 0.3 to 0.7 of each side, paint the rest, uint8 H W."""
    hole = np.full((height, width), 255, dtype=np.uint8)
    shares = rng.uniform(0.3, 0.7, 2)
    kept_height, kept_width = max(1, round(height * shares[0])), max(1, round(width * shares[1]))
    top, left = (height - kept_height) // 2, (width - kept_width) // 2
    hole[top : top + kept_height, left : left + kept_width] = 0
    return hole
