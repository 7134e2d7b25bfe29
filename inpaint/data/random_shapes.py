"""Holes drawn at random: rectangles, circles, brush strokes and mixes of them, with a chosen share of covered area.

A hole is uint8 H W: 0 keep, 255 paint. Shapes are scaled to the image: a hole means the same at 32 and at 512 pixels.

Promise: a hole covers a share of the image that lies in the chosen range, to the pixel; it is never empty and never
full.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from PIL import Image, ImageDraw

from inpaint.data.holes import Hole
from inpaint.errors import InpaintError

MOST_SHAPES = 40


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
    """A recipe for holes (`inpaint.data.holes`): shapes drawn at random, in place of the row's own mask."""

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
        """A hole, uint8 H W, of 0 and 255; `own` is not looked at."""
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


def _trimmed(hole: np.ndarray, area: int, rng: np.random.Generator) -> np.ndarray:
    """The hole with exactly `area` pixels: eaten away from its edge, or grown at it."""
    if hole.all() or not hole.any():  # no edge to begin at
        hole[int(rng.integers(hole.shape[0])), int(rng.integers(hole.shape[1]))] ^= True
    while (excess := int(hole.sum()) - area) != 0:
        edge = np.flatnonzero(_edge(hole if excess > 0 else ~hole))
        changed = edge if len(edge) <= abs(excess) else edge[: abs(excess)]
        hole.flat[changed] = excess < 0
    return hole


def _edge(region: np.ndarray) -> np.ndarray:
    """The pixels of a region that touch what is not of it, bool H W; the image's border is no edge."""
    padded = np.pad(region, 1, constant_values=True)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return region & ~inner
