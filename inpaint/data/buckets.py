"""Aspect buckets: shapes of about one area, of which each image is seen in the one that crops least of it.

Source: NovelAI's aspect ratio bucketing, as kohya-ss/sd-scripts has it (`model_util.make_bucket_resolutions`).
"""

from collections.abc import Sequence

import numpy as np

from inpaint.data.rows import Manifest
from inpaint.errors import InpaintError


def shapes(side: int, *, multiple: int = 64, most_aspect: float = 2.0) -> tuple[tuple[int, int], ...]:
    """Height and width of each bucket, whose area is at most `side` squared, from the tallest to the widest.

    Args:
        multiple: that sides are multiples of, in pixels.
        most_aspect: longer over shorter side.

    Raises:
        InpaintError: no such shape.
    """
    if side < multiple or most_aspect < 1:
        raise InpaintError(f"buckets of {side} px, multiples of {multiple}, aspect up to {most_aspect}: there are none")
    sides = range(multiple, int(side * most_aspect) + 1, multiple)
    wide = {(short, side * side // short // multiple * multiple) for short in sides if short <= side}
    wide = {(short, long) for short, long in wide if long <= most_aspect * short}
    return tuple(sorted(wide | {shape[::-1] for shape in wide}, key=lambda shape: shape[1] / shape[0]))


def in_buckets(rows: Manifest, found: Sequence[tuple[int, int]]) -> Manifest:
    """The rows, each in the bucket (its number in `found`, of heights and widths) whose aspect is nearest its own."""
    widths, heights = (rows.table[name].to_numpy() for name in ("width", "height"))
    return rows.in_buckets(nearest(widths, heights, [height / width for height, width in found]))


def nearest(widths: np.ndarray, heights: np.ndarray, aspects: Sequence[float]) -> np.ndarray:
    """Of images, int[N] each, which of the aspects (height over width) is nearest their own, int64[N]."""
    return np.abs(np.log(heights / widths)[:, None] - np.log(aspects)).argmin(axis=1)
