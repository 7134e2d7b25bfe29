"""Aspect buckets: shapes of about one area, of which each image is seen in the one that crops least of it.

Source: NovelAI's aspect ratio bucketing, as kohya-ss/sd-scripts has it (`model_util.make_bucket_resolutions`).
"""

import math
from collections.abc import Sequence

import numpy as np

from inpaint.data.rows import Manifest
from inpaint.errors import InpaintError

LEAST_AREA = 0.85
"""Of a bucket's shape, as a share of what was asked for."""


def shapes(area: int, *, multiple: int = 64, most_aspect: float = 2.0) -> tuple[tuple[int, int], ...]:
    """Height and width of each bucket, of at most `area` pixels, from the tallest to the widest.

    Args:
        multiple: that sides are multiples of, in pixels.
        most_aspect: longer over shorter side.

    Raises:
        InpaintError: there are not several, or some are far smaller.
    """
    shorts = range(multiple, math.isqrt(area) + 1, multiple)
    found = {(short, area // short // multiple * multiple) for short in shorts}
    found = {(short, long) for short, long in found if short <= long <= most_aspect * short}
    if len(found) < 2 or min(short * long for short, long in found) < LEAST_AREA * area:
        raise InpaintError(
            f"aspect buckets of {area:,} px, with sides that are multiples of {multiple} px: there are not several of "
            "about that area: give another resolution, such as the base's own, or leave aspect_buckets out"
        )
    return tuple(sorted(found | {shape[::-1] for shape in found}, key=lambda shape: shape[1] / shape[0]))


def in_buckets(rows: Manifest, found: Sequence[tuple[int, int]]) -> Manifest:
    """The rows, each in the bucket (its number in `found`, of heights and widths) whose aspect is nearest its own."""
    widths, heights = (rows.table[name].to_numpy() for name in ("width", "height"))
    return rows.in_buckets(nearest(widths, heights, [height / width for height, width in found]))


def nearest(widths: np.ndarray, heights: np.ndarray, aspects: Sequence[float]) -> np.ndarray:
    """Of images, int[N] each, which of the aspects (height over width) is nearest their own, int64[N]."""
    order, logs = np.argsort(aspects), np.log(np.sort(aspects))
    return order[np.searchsorted((logs[1:] + logs[:-1]) / 2, np.log(heights / widths))]
