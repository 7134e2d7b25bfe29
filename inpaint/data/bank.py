"""A bank of variants: each row has a few views (crop, mirrored or not) and a few holes of each, and samples draw among
them, so that what is made of a variant once serves whenever it comes again.

Which variant a sample has is a function of (seed, position); what a variant looks like is one of (row's digest, its
number), whatever the run: so runs share what was made of it. More variants leave those that there were as they are.
The whole image is no hole of the bank: it is the same for all rows, and drawn by sample.
"""

from dataclasses import dataclass

import numpy as np

from inpaint.data.holes import Hole, WholeImage
from inpaint.data.rows import Row, mixed
from inpaint.errors import InpaintError
from inpaint.randomness import generator

WHOLE = -1
"""The number of the hole that is the whole image."""
_GOLDEN_RATIO = 0x9E3779B97F4A7C15


@dataclass(frozen=True, kw_only=True)
class Bank:
    """How many variants of a row there are."""

    holes: int = 4
    """Of each view, beside the whole image."""
    views: int | None = None
    """Crops and mirrorings; unset: all that there are, 1 or 2, and 4 where crops are random."""

    def __post_init__(self) -> None:
        if self.holes < 1 or (self.views is not None and self.views < 1):
            raise InpaintError(f"bank: holes {self.holes}, views {self.views}: give at least 1 of each")

    def view_count(self, *, random_crops: bool, mirrors: bool) -> int:
        """Views of a row. Args: mirrors: whether some samples are mirrored and others not."""
        if self.views is not None:
            return self.views
        return 4 if random_crops else 1 + mirrors


def choose(seed: int, positions: np.ndarray, views: int, holes: int, whole: float) -> tuple[np.ndarray, np.ndarray]:
    """The view, int64[B], and the hole, int64[B], of samples at positions (int64[B]).

    Args:
        whole: share of the samples whose hole is `WHOLE`.
    """
    view = (_shares(seed, "view", positions) * views).astype(np.int64)
    hole = (_shares(seed, "hole of the bank", positions) * holes).astype(np.int64)
    return view, np.where(_shares(seed, "whole hole", positions) < whole, WHOLE, hole)


def _shares(seed: int, purpose: str, positions: np.ndarray) -> np.ndarray:
    """Of [0, 1), float64[B]: SplitMix64 (Steele et al. 2014) from a start of the purpose's own."""
    start = generator(seed, purpose, 0).bit_generator.random_raw(1)
    words = mixed(start + positions.astype(np.uint64) * np.uint64(_GOLDEN_RATIO))
    return (words >> np.uint64(11)) * 2.0**-53


def crop_randomness(row: Row, view: int) -> np.random.Generator:
    """What a view's crop is drawn with."""
    return generator(_key(row), "crop", view)


def is_mirrored(row: Row, view: int, probability: float) -> bool:
    """Whether a view is: of a row's views as near the probability as can be, of two at one half exactly one."""
    start = generator(_key(row), "flip", 0).random()
    return bool((start + _spread(view)) % 1 < probability)


def hole_of(row: Row, recipe: Hole, view: int, number: int) -> tuple[Hole, np.random.Generator]:
    """What a hole is drawn by, and with which randomness."""
    if number == WHOLE:
        return WholeImage(), generator(0, "none", 0)
    return recipe.partial, generator(_key(row), f"hole of view {view}", number)


def _key(row: Row) -> int:
    return int(row.digest[:16], 16)


def _spread(number: int) -> float:
    """Van der Corput's sequence: 0, 1/2, 1/4, 3/4, ..."""
    return int(f"{number:064b}"[::-1], 2) * 2.0**-64
