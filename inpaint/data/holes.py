"""Holes as small recipes: where a sample is to be painted. Each is a frozen value, so that a run's settings name it.

A hole is uint8 H W: 0 keep .. 255 paint, and a pixel counts as painted from 128. Sizes are shares of the image, so a
hole means the same at 64 and at 1024 pixels. `Grown`, `Feathered` and `Sometimes` wrap any other.

Promises: no hole is empty; a recipe draws its own numbers before those that it wraps, so that changing a setting of one
does not change what the others draw.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from inpaint.data.decode import PAINT
from inpaint.errors import InpaintError

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in shares of the width and height."""


class Hole:
    """A recipe for holes."""

    @property
    def uses_own(self) -> bool:
        """Whether the row's own mask is looked at; where not, it is not even read. By default as what is wrapped."""
        return any(part.uses_own for part in vars(self).values() if isinstance(part, Hole))

    def draw(self, own: np.ndarray | None, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """A hole, uint8 H W. `own` is the row's mask as the crop shows it, uint8 H W, not empty; None: it has none."""
        raise NotImplementedError


@dataclass(frozen=True)
class WholeImage(Hole):
    """Everything is painted."""

    def draw(self, own: np.ndarray | None, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        return np.full((height, width), 255, dtype=np.uint8)


@dataclass(frozen=True)
class CentreKept(Hole):
    """A centred rectangle of 0.3 to 0.7 of each side is kept, the rest is painted."""

    def draw(self, own: np.ndarray | None, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        hole = np.full((height, width), 255, dtype=np.uint8)
        shares = rng.uniform(0.3, 0.7, 2)
        kept_height, kept_width = max(1, round(height * shares[0])), max(1, round(width * shares[1]))
        top, left = (height - kept_height) // 2, (width - kept_width) // 2
        hole[top : top + kept_height, left : left + kept_width] = 0
        return hole


@dataclass(frozen=True)
class OwnMask(Hole):
    """The row's own mask."""

    missing: Hole = CentreKept()
    """What is drawn for rows without one."""

    @property
    def uses_own(self) -> bool:
        return True

    def draw(self, own: np.ndarray | None, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        return self.missing.draw(None, height, width, rng) if own is None else own


@dataclass(frozen=True)
class Sometimes(Hole):
    """Another hole now and then."""

    hole: Hole
    probability: float = 0.25
    """Share of samples that get `instead`."""
    instead: Hole = WholeImage()

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise InpaintError(f"probability {self.probability} of another hole is not between 0 and 1")

    def draw(self, own: np.ndarray | None, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        chosen = self.instead if rng.random() < self.probability else self.hole
        return chosen.draw(own, height, width, rng)


@dataclass(frozen=True)
class _Reaching(Hole):
    """A hole whose edge is changed, by a distance drawn for each sample."""

    hole: Hole
    most: float
    """The largest distance, as a share of the short side; uniform from 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.most <= 0.5:
            raise InpaintError(f"{type(self).__name__} by up to {self.most}: give a share of the short side, 0 to 0.5")

    def draw(self, own: np.ndarray | None, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        radius = round(rng.random() * self.most * min(height, width))
        hole = self.hole.draw(own, height, width, rng)
        return hole if radius < 1 else self.change(hole, radius)

    def change(self, hole: np.ndarray, radius: int) -> np.ndarray:
        """A hole, uint8 H W, changed over a distance of 1 or more pixels."""
        raise NotImplementedError


@dataclass(frozen=True)
class Grown(_Reaching):
    """A hole made larger in each direction."""

    most: float = 0.03

    def change(self, hole: np.ndarray, radius: int) -> np.ndarray:
        """The largest value in a square window of `radius` pixels in each direction."""
        return _spread(_spread(hole, radius).T, radius).T


@dataclass(frozen=True)
class Feathered(_Reaching):
    """A hole whose edge is softened, inside it; one so thin that softening would empty it stays as it is."""

    most: float = 0.02

    def change(self, hole: np.ndarray, radius: int) -> np.ndarray:
        """The edge softened inside the hole over about `radius` pixels; pixels outside stay as they were."""
        # The edge of the image is not an edge of the hole: padding with copies keeps it hard.
        padded = Image.fromarray(np.pad(hole, radius, mode="edge"))
        blurred = np.asarray(padded.filter(ImageFilter.BoxBlur(radius)))[radius:-radius, radius:-radius]
        # A straight edge blurs to one half on the edge itself and to one at `radius` inside.
        ramp = np.clip(2 * blurred.astype(np.int16) - 255, 0, 255).astype(np.uint8)
        soft = np.minimum(hole, ramp)
        return hole if is_empty(soft) else soft


def is_empty(hole: np.ndarray) -> bool:
    """Whether a hole, uint8 H W, has no painted pixel."""
    return not bool((hole >= PAINT).any())


def _spread(values: np.ndarray, radius: int) -> np.ndarray:
    """The largest value in rows y - radius .. y + radius, by windows that double: log2(radius) passes."""
    # What numpy does here keeps the order in memory, so that columns, as rows of the transposed, cost what rows cost.
    window, width = np.pad(values, ((radius, radius), (0, 0))), 1
    while width < 2 * radius + 1:
        step = min(width, 2 * radius + 1 - width)
        window = np.maximum(window[:-step], window[step:])
        width += step
    return window


def cover(mask: np.ndarray, shape: tuple[int, int], box: Box = (0.0, 0.0, 1.0, 1.0)) -> np.ndarray:
    """The part of a mask, bool H W, that lies in `box`, at `shape` (height, width): a pixel is in it where any of the
    mask falls to it, so that nothing of a mask is lost however small it becomes."""
    height, width = mask.shape
    tall = _largest(mask, box[1] * height, box[3] * height, shape[0])
    return _largest(np.ascontiguousarray(tall.T), box[0] * width, box[2] * width, shape[1]).T


def _largest(values: np.ndarray, start: float, end: float, count: int) -> np.ndarray:
    """`count` rows, each the largest of those whose middles fall to it when start .. end is divided evenly."""
    scale = (end - start) / count
    if scale > 1:
        # Each border once, so that a row on it falls to one side whatever the rounding. Pillow's box filter loses some.
        borders = np.ceil(start + np.arange(count + 1) * scale - 0.5).astype(np.intp).clip(0, len(values))
        first, last = borders[:-1], borders[1:] - 1
    else:
        first = last = np.floor(start + (np.arange(count) + 0.5) * scale).astype(np.intp).clip(0, len(values) - 1)
    found = values[first]
    for further in range(1, int((last - first).max()) + 1):
        np.logical_or(found, values[np.minimum(first + further, last)], out=found)
    return found
