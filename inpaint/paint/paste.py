"""Paste-back: what was painted goes into the hole of the original, and nothing else changes. Pure numpy.

Guaranteed: pixels outside the hole are bit for bit the original's, whatever the feather. Images are H x W x 3 uint8,
holes H x W bool, True = paint.
"""

from collections.abc import Sequence

import numpy as np

TINT = np.array([255, 0, 128], dtype=np.float32)
GAP = 4  # pixels between the pictures of a comparison


def paste_back(original: np.ndarray, painted: np.ndarray, hole: np.ndarray, *, feather: int = 0) -> np.ndarray:
    """The original with `painted` in the hole; a new array. Raises AssertionError where a kept pixel differs.

    Args:
        feather: width in pixels, inside the hole, over which the original fades into the painting; 0: a hard edge.
    """
    assert original.shape == painted.shape and hole.shape == original.shape[:2], "one size for all three"
    assert original.dtype == painted.dtype == np.uint8 and hole.dtype == bool
    result = original.copy()
    if feather == 0:
        result[hole] = painted[hole]
    else:
        opacity_N1 = _opacity(hole, feather)[hole][:, None]
        mixed_N3 = opacity_N1 * painted[hole] + (1 - opacity_N1) * original[hole]
        result[hole] = np.rint(mixed_N3).astype(np.uint8)
    assert_kept(original, result, hole)
    return result


def _opacity(hole: np.ndarray, feather: int) -> np.ndarray:
    """H x W float32: 0 outside; inside rises from 1 / (feather + 1) at the edge to 1 beyond `feather` pixels of it.

    Distances are city-block; the picture's border is no edge, for there is nothing behind it to fade from.
    """
    opacity = hole.astype(np.float32)
    inner = hole
    for _ in range(feather):
        padded = np.pad(inner, 1, constant_values=True)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        opacity += inner
    return opacity / (feather + 1)


def kept_pixels_changed(original: np.ndarray, result: np.ndarray, hole: np.ndarray) -> int:
    """How many pixels outside the hole differ."""
    assert original.shape == result.shape and hole.shape == original.shape[:2]
    return int(np.count_nonzero((original != result).any(axis=-1) & ~hole))


def assert_kept(original: np.ndarray, result: np.ndarray, hole: np.ndarray) -> None:
    """Raises AssertionError, also under `python -O`, where a pixel outside the hole differs."""
    changed = kept_pixels_changed(original, result, hole)
    if changed:
        raise AssertionError(f"{changed} kept pixels of {int(np.count_nonzero(~hole))} were changed")


def comparison(original: np.ndarray, hole: np.ndarray, result: np.ndarray) -> np.ndarray:
    """A strip of three pictures on white: the input, the input with its hole tinted, the result."""
    tinted = original.copy()
    tinted[hole] = np.rint(0.5 * original[hole] + 0.5 * TINT).astype(np.uint8)
    return side_by_side([original, tinted, result])


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one height in a row, `GAP` white pixels between them."""
    gap = np.full((pictures[0].shape[0], GAP, 3), 255, dtype=np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(parts[1:], axis=1)
