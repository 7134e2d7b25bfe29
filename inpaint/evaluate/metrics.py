"""How well holes are filled: PSNR, SSIM and L1 inside the hole where the truth is known, and seams, the growth of
products and the spread of samples where it is not.

Images are H x W x 3 uint8, holes H x W bool, True = painted. PSNR prefers the mean of all that is possible to any one
sample: report a one-step regression and the mean of several samples beside it.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from inpaint.errors import InpaintError

WINDOW = 7
"""Side of SSIM's uniform window, scikit-image's default."""


def hole_figures(result: np.ndarray, truth: np.ndarray, hole: np.ndarray) -> dict[str, float]:
    """`psnr`, `ssim` and `l1` inside a hole; without the first where the result is the truth, which has no mean with
    others; none where there is no hole. What training's validation reports, too."""
    if not hole.any():
        return {}
    figures = {"ssim": hole_ssim(result, truth, hole), "l1": hole_l1(result, truth, hole)}
    return {"psnr": hole_psnr(result, truth, hole), **figures} if figures["l1"] else figures


def hole_psnr(result: np.ndarray, truth: np.ndarray, hole: np.ndarray) -> float:
    """Peak signal-to-noise ratio over the hole's pixels in dB; infinite where they are equal.

    Raises:
        InpaintError: an empty hole, where nothing can be measured.
    """
    _check(result, truth, hole)
    error = np.mean((result[hole].astype(np.float64) - truth[hole]) ** 2)
    return float(10 * np.log10(255**2 / error)) if error > 0 else float("inf")


def hole_ssim(result: np.ndarray, truth: np.ndarray, hole: np.ndarray) -> float:
    """Mean over the hole's pixels of the structural similarity map, in [-1, 1]."""
    _check(result, truth, hole)
    return float(ssim_map(result, truth)[hole].mean())


def hole_l1(result: np.ndarray, truth: np.ndarray, hole: np.ndarray) -> float:
    """Mean absolute difference over the hole's pixels, in [0, 1]."""
    _check(result, truth, hole)
    return float(np.abs(result[hole].astype(np.float64) - truth[hole]).mean() / 255)


def boundary_jump(result: np.ndarray, hole: np.ndarray) -> float:
    """How much steeper the picture is across the hole's edge than on both sides of it, in [-1, 1]: 0 where the seam
    cannot be told from what is around it.

    The mean, over neighbours of which one is painted, of their absolute difference, less the mean of those between each
    of them and the next pixel on its own side. Raises InpaintError where hole and photo nowhere have two pixels each.
    """
    assert result.dtype == np.uint8 and hole.dtype == bool and hole.shape == result.shape[:2]
    jumps = []
    for pixels, painted in ((result, hole), (result.swapaxes(0, 1), hole.T)):
        steps = np.abs(np.diff(pixels.astype(np.float64), axis=0)).mean(axis=2) / 255
        same = painted[1:] == painted[:-1]
        is_edge = ~same[1:-1] & same[:-2] & same[2:]
        jumps.append((steps[1:-1] - (steps[:-2] + steps[2:]) / 2)[is_edge])
    found = np.concatenate(jumps)
    if not found.size:
        raise InpaintError("the hole has no edge with two pixels on each side: there is no seam to measure")
    return float(found.mean())


def object_expansion(found: np.ndarray, product: np.ndarray) -> float:
    """Share of the product found in a result (H x W bool) that lies outside the product kept (H x W bool): what was
    painted on to it. Raises InpaintError where none was found."""
    assert found.dtype == product.dtype == bool and found.shape == product.shape
    if not found.any():
        raise InpaintError("no product was found in the result: its expansion cannot be told")
    return float((found & ~product).sum() / found.sum())


def spread(results: Sequence[np.ndarray], hole: np.ndarray) -> float:
    """How much samples for one hole differ: `hole_l1` of each pair, mean, in [0, 1]. Raises InpaintError for one."""
    if len(results) < 2:
        raise InpaintError(f"spread of {len(results)} results: give at least 2")
    return float(np.mean([hole_l1(one, other, hole) for one, other in combinations(results, 2)]))


def ssim_map(result: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Structural similarity around each pixel (Wang 2004, eq. 13), float64 H W.

    As scikit-image's `structural_similarity(..., full=True, channel_axis=2)`: a uniform window that is mirrored at the
    border, sample covariances, mean over the channels.
    """
    if min(truth.shape[:2]) < WINDOW:
        raise InpaintError(f"image of {truth.shape[1]} x {truth.shape[0]}: SSIM needs {WINDOW} pixels each way")
    x, y = result.astype(np.float64), truth.astype(np.float64)
    sample = WINDOW**2 / (WINDOW**2 - 1)
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x = sample * (_windowed(x * x) - mean_x**2)
    variance_y = sample * (_windowed(y * y) - mean_y**2)
    covariance = sample * (_windowed(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return similarity.mean(axis=2)


def _windowed(values_HWC: np.ndarray) -> np.ndarray:
    """Mean over the window around each pixel."""
    half = (WINDOW // 2, WINDOW // 2)
    padded = np.pad(values_HWC, (half, half, (0, 0)), mode="symmetric")
    return np.lib.stride_tricks.sliding_window_view(padded, (WINDOW, WINDOW), axis=(0, 1)).mean(axis=(-2, -1))


def _check(result: np.ndarray, truth: np.ndarray, hole: np.ndarray) -> None:
    assert result.dtype == truth.dtype == np.uint8 and hole.dtype == bool
    assert result.shape == truth.shape and hole.shape == truth.shape[:2], "one size for all three"
    if not hole.any():
        raise InpaintError("the hole is empty: there is nothing to measure in it")
