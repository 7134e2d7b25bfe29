"""Holes as small recipes: where a sample is to be painted. Each is a frozen value, so that a run's settings name it.

A hole is uint8 H W: 0 keep .. 255 paint, and a pixel counts as painted from 128. Sizes are shares of the image, so a
hole means the same at 64 and at 1024 pixels. `Grown`, `Feathered` and `Sometimes` wrap any other.

Promises: no hole is empty; a recipe draws its own numbers before those that it wraps, so that changing a setting of one
does not change what the others draw.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

import cv2
import numpy as np
from PIL import Image, ImageDraw

from inpaint.data.decode import PAINT
from inpaint.data.panels import Grid, Panel, find_panels, panels_hole
from inpaint.errors import InpaintError

MOST_SHAPES = 40
Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in shares of the width and height."""


class Hole(Protocol):
    """A recipe for holes."""

    @property
    def uses_own(self) -> bool:
        """Whether the row's own mask is looked at; where not, it is not even read."""
        return False

    @property
    def whole(self) -> float:
        """Share of samples whose hole is the whole image, where that is decided before anything else is drawn."""
        return 0.0

    @property
    def partial(self) -> "Hole":
        """The recipe for the other samples."""
        return self

    def seeing(self, image: np.ndarray) -> "Hole":
        """The recipe for this image, uint8 H W 3, where what it shows counts. Raises BadRow for one that cannot be."""
        return self

    def draw(self, own: np.ndarray | None, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """A hole, uint8 H W. `own` is the row's mask as the crop shows it, uint8 H W, not empty; None: it has none."""
        ...


@dataclass(frozen=True)
class WholeImage(Hole):
    """Everything is painted."""

    @property
    def whole(self) -> float:
        return 1.0

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

    @property
    def uses_own(self) -> bool:
        return self.hole.uses_own or self.instead.uses_own

    @property
    def whole(self) -> float:
        return self.probability if isinstance(self.instead, WholeImage) else 0.0

    @property
    def partial(self) -> Hole:
        return self.hole if isinstance(self.instead, WholeImage) else self

    def seeing(self, image: np.ndarray) -> Hole:
        return replace(self, hole=self.hole.seeing(image), instead=self.instead.seeing(image))

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

    @property
    def uses_own(self) -> bool:
        return self.hole.uses_own

    def seeing(self, image: np.ndarray) -> Hole:
        return replace(self, hole=self.hole.seeing(image))

    def draw(self, own: np.ndarray | None, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        radius = round(rng.random() * self.most * min(height, width))
        hole = self.hole.draw(own, height, width, rng)
        return hole if radius < 1 else self.change(hole, radius)

    @abstractmethod
    def change(self, hole: np.ndarray, radius: int) -> np.ndarray:
        """A hole, uint8 H W, changed over a distance of 1 or more pixels."""


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
        # The edge of the image is not an edge of the hole: copies beyond it keep it hard.
        blurred = cv2.blur(hole, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REPLICATE)
        # A straight edge blurs to one half on the edge itself and to one at `radius` inside.
        ramp = np.clip(2 * blurred.astype(np.int16) - 255, 0, 255).astype(np.uint8)
        soft = np.minimum(hole, ramp)
        return hole if is_empty(soft) else soft


@dataclass(frozen=True, kw_only=True)
class Panels(Hole):
    """Some whole panels of a composite, chosen at random; borders and gutters are kept."""

    grid: Grid = Grid()
    most: int = 2
    """1 to this many are painted, uniform; fewer than there are."""
    found: tuple[Panel, ...] = ()
    """Where they lie in the image, once it was seen."""

    def __post_init__(self) -> None:
        if not 1 <= self.most < self.grid.count:
            raise InpaintError(f"up to {self.most} of {self.grid} panels: give 1 or more, and leave one to be seen")

    def seeing(self, image: np.ndarray) -> Hole:
        return replace(self, found=find_panels(image, self.grid))

    def draw(self, own: np.ndarray | None, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        assert self.found, "which panels there are is seen in an image"
        painted = rng.permutation(self.grid.count)[: int(rng.integers(1, self.most + 1))]
        return panels_hole((height, width), self.found, painted.tolist()).astype(np.uint8) * 255


class HoleKind(StrEnum):
    """What a hole is made of."""

    RECTANGLES = "rectangles"
    CIRCLES = "circles"
    STROKES = "strokes"
    MIX = "mix"
    """Each shape is one of the three."""


SHAPES = (HoleKind.RECTANGLES, HoleKind.CIRCLES, HoleKind.STROKES)


@dataclass(frozen=True, kw_only=True)
class RandomShapes(Hole):
    """Shapes drawn at random, in place of the row's own mask. They cover a share of the image that lies in the chosen
    range, to the pixel: never nothing, never all."""

    kinds: tuple[HoleKind, ...] = tuple(HoleKind)
    """One of these is chosen for each hole; a kind that is named twice comes twice as often."""
    areas: tuple[tuple[float, float], ...] = ((0.05, 0.5),)
    """Ranges of the covered share of the image: one of them is chosen, then a share in it, both uniform."""
    most_shapes: int = 4
    """A hole is built of 1 to this many shapes, uniform; of more where they overlap."""
    stroke_width: tuple[float, float] = (0.08, 0.2)
    """Width of a brush, as a share of the image's side."""

    def __post_init__(self) -> None:
        if not self.kinds or self.most_shapes < 1:
            raise InpaintError(f"kinds {self.kinds}, most_shapes {self.most_shapes}: give at least one")
        if not self.areas or any(not 0 < least < most < 1 for least, most in self.areas):
            raise InpaintError(f"areas {self.areas}: give ranges (least, most) with 0 < least < most < 1")
        if not 0 < self.stroke_width[0] <= self.stroke_width[1] <= 1:
            raise InpaintError(f"stroke_width {self.stroke_width}: give (least, most) shares of the side in (0, 1]")

    def draw(self, own: np.ndarray | None, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        kind = self.kinds[int(rng.integers(len(self.kinds)))]
        least, most = self.areas[int(rng.integers(len(self.areas)))]
        pixels = height * width
        target = min(max(1, round(rng.uniform(least, most) * pixels)), pixels - 1)
        # Whole pixels: a range that holds none of them becomes the nearest one.
        fewest, largest = max(1, math.ceil(least * pixels)), min(pixels - 1, math.floor(most * pixels))
        shapes = int(rng.integers(1, self.most_shapes + 1))
        hole = np.zeros((height, width), dtype=bool)
        for drawn in range(MOST_SHAPES):
            missing = target - int(hole.sum())
            if missing <= 0:
                break
            area = max(1.0, missing / max(1, shapes - drawn))
            shape = kind if kind is not HoleKind.MIX else SHAPES[int(rng.integers(len(SHAPES)))]
            hole |= self._shape(shape, height, width, area, rng)
        return _trimmed(hole, min(max(int(hole.sum()), fewest), max(fewest, largest)), rng).astype(np.uint8) * 255

    def _shape(self, kind: HoleKind, height: int, width: int, area: float, rng: np.random.Generator) -> np.ndarray:
        """One shape of about `area` pixels, bool H W; parts of it may lie outside the image."""
        canvas = Image.new("1", (width, height))
        draw = ImageDraw.Draw(canvas)
        if kind is HoleKind.RECTANGLES:
            aspect = math.exp(rng.uniform(-0.7, 0.7))
            wide, high = min(width, math.sqrt(area * aspect)), min(height, math.sqrt(area / aspect))
            wide, high = max(1, round(wide)), max(1, round(high))
            left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
            draw.rectangle((left, top, left + wide - 1, top + high - 1), fill=1)
        elif kind is HoleKind.CIRCLES:
            radius = math.sqrt(area / math.pi)
            x, y = rng.uniform(0, width), rng.uniform(0, height)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
        else:
            self._stroke(draw, height, width, area, rng)
        return np.array(canvas)

    def _stroke(
        self, draw: ImageDraw.ImageDraw, height: int, width: int, area: float, rng: np.random.Generator
    ) -> None:
        """A brush in straight pieces that turn by up to a right angle, until it has covered about `area` pixels."""
        side = min(height, width)
        # A brush is no wider than a dot of the whole area.
        brush = max(1.0, min(rng.uniform(*self.stroke_width) * side, math.sqrt(area)))
        x, y, heading = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 2 * math.pi)
        left = area
        while left > 0:
            length = min(rng.uniform(0.1, 0.35) * side, left / brush)
            heading += rng.uniform(-math.pi / 2, math.pi / 2)
            end_x, end_y = x + length * math.cos(heading), y + length * math.sin(heading)
            if not (0 <= end_x < width and 0 <= end_y < height):
                # Back towards the middle, or the brush would follow the border.
                heading = math.atan2(height / 2 - y, width / 2 - x) + rng.uniform(-0.5, 0.5)
                end_x, end_y = x + length * math.cos(heading), y + length * math.sin(heading)
            draw.line((x, y, end_x, end_y), fill=1, width=round(brush))
            for dot_x, dot_y in ((x, y), (end_x, end_y)):
                draw.ellipse((dot_x - brush / 2, dot_y - brush / 2, dot_x + brush / 2, dot_y + brush / 2), fill=1)
            x, y = end_x, end_y
            left -= max(1.0, length * brush)


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


def _trimmed(hole: np.ndarray, area: int, rng: np.random.Generator) -> np.ndarray:
    """The hole with exactly `area` pixels: eaten away from its edge, or grown at it."""
    if hole.all() or not hole.any():  # no edge to begin at
        hole[int(rng.integers(hole.shape[0])), int(rng.integers(hole.shape[1]))] ^= True
    while (excess := int(hole.sum()) - area) != 0:
        edge = np.flatnonzero(_edge(hole if excess > 0 else ~hole))
        hole.flat[edge[: abs(excess)]] = excess < 0
    return hole


def _edge(region: np.ndarray) -> np.ndarray:
    """The pixels of a region that touch what is not of it, bool H W; the image's border is no edge."""
    padded = np.pad(region, 1, constant_values=True)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return region & ~inner


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
