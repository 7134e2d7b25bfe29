"""The panels of a composite, such as a character sheet of 2 x 2 views: where they lie, borders and gutters left out.

Gutters and borders are what is of one colour from edge to edge, and narrow: what is wider is taken for a panel's own
background. Where there are none, panels share the picture evenly, to the pixel. Panels are numbered in reading order,
from 0 at the top left. Not covered: a picture that is no composite cannot be told from one without gutters.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

import numpy as np

from inpaint.data.quarantine import Reason
from inpaint.errors import BadRow, InpaintError

PLAIN = 24
"""Levels of 255 within which a line of pixels is of one colour, as JPEG leaves it."""
WIDEST = 1 / 8
"""Of a gutter or border, as a share of a panel's side."""
NEAR = 0.15
"""How far from an even division a gutter may lie, as a share of a panel's side, where it could be a background, too."""
SHARP = 0.4
"""Share of the lines on both sides of a band that has other colours, where it is a gutter and no background."""
LEAST = 8
"""Pixels of a panel's side."""
MOST_PANELS = 16

Panel = tuple[slice, slice]
"""`image[panel]` is a panel."""
Span = tuple[int, int]
"""First line, and the one after the last."""


@dataclass(frozen=True)
class Grid:
    """How many panels a composite has."""

    rows: int = 2
    columns: int = 2

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1 or not 2 <= self.count <= MOST_PANELS:
            raise InpaintError(f"grid {self}: give rows x columns of 2 to {MOST_PANELS} panels in all, such as 2x2")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `2x2`, rows first. Raises InpaintError."""
        found = re.fullmatch(r"(\d{1,2})x(\d{1,2})", text)
        if found is None:
            raise InpaintError(f"grid {text!r}: give rows x columns, such as 2x2, 1x4 or 3x3")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.columns

    @property
    def count(self) -> int:
        """Of panels."""
        return self.rows * self.columns

    def check(self, panels: Collection[int]) -> None:
        """Raise InpaintError for numbers that no panel has, and where none is left or none is named."""
        wrong = [panel for panel in panels if not 0 <= panel < self.count]
        if wrong:
            raise InpaintError(f"panel {wrong[0]}: a grid of {self} has the panels 0 to {self.count - 1}")
        if not 1 <= len(set(panels)) < self.count:
            named = ", ".join(map(str, sorted(set(panels))))
            raise InpaintError(f"panels {named or '(none)'} of {self.count}: give 1 or more, and leave one to be seen")


@dataclass(frozen=True)
class ChosenPanels:
    """Which panels of a composite are to be painted."""

    numbers: tuple[int, ...]
    grid: Grid = Grid()

    def __post_init__(self) -> None:
        self.grid.check(self.numbers)

    def hole(self, image: np.ndarray) -> np.ndarray:
        """Bool H W: True in these panels of a composite, uint8 H W 3. Raises BadRow, as `find_panels`."""
        return panels_hole(image.shape[:2], find_panels(image, self.grid), self.numbers)


def find_panels(image: np.ndarray, grid: Grid) -> tuple[Panel, ...]:
    """The panels of a composite, uint8 H W 3. Raises BadRow: its gutters make another grid, or panels are too small."""
    (top, bottom), (left, right) = (_without_border(image, axis, n) for axis, n in enumerate(grid.shape))
    inner = image[top:bottom, left:right]
    bands = [_bands(inner, axis) for axis in (0, 1)]
    sharp = [_sharp(inner, axis, bands[axis]) for axis in (0, 1)]
    for axis, (what, panels) in enumerate(zip(("rows", "columns"), grid.shape, strict=True)):
        found = 1 + len(sharp[axis])
        if found not in (1, panels) and all(_near_even(sharp[axis], inner.shape[axis], found)):
            detail = f"its gutters make {found} {what}, not the {what} of {grid}: name its grid"
            raise BadRow("image", Reason.OTHER_GRID, detail)
    # In one direction alone they may be a texture.
    are_all_there = [1 + len(one) for one in sharp] == list(grid.shape)
    rows, columns = (
        _divided(inner.shape[axis], panels, sharp[axis] if are_all_there else bands[axis], anywhere=are_all_there)
        for axis, panels in enumerate(grid.shape)
    )
    if min(stop - start for start, stop in (*rows, *columns)) < LEAST:
        shown = " x ".join(str(side) for side in inner.shape[1::-1])
        raise BadRow("image", Reason.OTHER_GRID, f"{shown} pixels: panels of {grid} would have fewer than {LEAST}")
    return tuple(
        (slice(top + start, top + stop), slice(left + begin, left + end))
        for start, stop in rows
        for begin, end in columns
    )


def panels_hole(shape: tuple[int, ...], panels: tuple[Panel, ...], painted: Collection[int]) -> np.ndarray:
    """Bool H W: True in the panels that are to be painted."""
    hole = np.zeros(shape, dtype=bool)
    for number in painted:
        hole[panels[number]] = True
    return hole


def _without_border(image: np.ndarray, axis: int, panels: int) -> Span:
    """The lines between what is of one colour at both ends."""
    length = image.shape[axis]
    widest, bands = length / panels * WIDEST, _bands(image, axis)
    first = bands[0][1] if bands and bands[0][0] == 0 and bands[0][1] <= widest else 0
    last = bands[-1][0] if bands and bands[-1][1] == length and length - bands[-1][0] <= widest else length
    return first, last


def _divided(length: int, panels: int, bands: list[Span], *, anywhere: bool) -> list[Span]:
    """So many spans of lines between gutters: all of `bands`, or those near an even division, and else evenly."""
    gutters = bands if anywhere else _near_even(bands, length, panels)
    even = [round(length * number / panels) for number in range(1, panels)]
    cuts = [gutter or (line, line) for gutter, line in zip(gutters, even, strict=True)]
    starts, stops = [0, *(stop for _, stop in cuts)], [*(start for start, _ in cuts), length]
    return list(zip(starts, stops, strict=True))


def _sharp(image: np.ndarray, axis: int, bands: list[Span]) -> list[Span]:
    """Those narrow bands beside which most pixels have another colour, on both sides: a plain background goes on beside
    what stands on it. The lines next to a band may be blends of both."""
    lines, found = np.moveaxis(image, axis, 0), []
    for start, stop in bands:
        tone_3 = lines[start:stop].mean((0, 1))
        beside = (lines[max(start - 2, 0)], lines[min(stop + 1, len(lines) - 1)])
        differs = [(np.abs(line - tone_3).max(-1) > PLAIN).mean() >= SHARP for line in beside]
        is_plain = np.ptp(lines[start:stop], axis=(0, 1)).max() <= PLAIN // 3
        if is_plain and 2 <= stop - start <= len(lines) / 2 * WIDEST and all(differs):
            found.append((start, stop))
    return found


def _near_even(bands: list[Span], length: int, panels: int) -> list[Span | None]:
    """Of each division between so many panels, the narrow band that is nearest to it, if one is near it."""
    narrow, found = [(start, stop) for start, stop in bands if stop - start <= length / panels * WIDEST], []
    for number in range(1, panels):
        off = {band: abs(sum(band) / 2 - length * number / panels) for band in narrow}
        nearest = min(off, key=lambda band: off[band], default=None)
        found.append(nearest if nearest and off[nearest] <= NEAR * length / panels else None)
    return found


def _bands(image: np.ndarray, axis: int) -> list[Span]:
    """Runs of lines that are each, and with their neighbours, of one colour."""
    low_N3, high_N3 = (extreme(axis=1 - axis).astype(np.int16) for extreme in (image.min, image.max))
    plain_N = (high_N3 - low_N3 <= PLAIN).all(axis=1)
    tone_N3 = (low_N3 + high_N3) // 2
    is_same_N = np.r_[False, (np.abs(np.diff(tone_N3, axis=0)) <= PLAIN // 2).all(axis=1)]
    starts = np.flatnonzero(plain_N & ~(is_same_N & np.r_[False, plain_N[:-1]]))
    stops = np.flatnonzero(plain_N & ~np.r_[(is_same_N & plain_N)[1:], False]) + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))
