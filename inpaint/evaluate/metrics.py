"""How well holes are filled, where the truth is known: PSNR and SSIM inside the hole.

Images are H x W x 3 uint8, holes H x W bool, True = painted. PSNR prefers the mean of all that is possible to any one
sample: report a one-step regression and the mean of several samples beside it.
"""

import numpy as np

from inpaint.errors import InpaintError

WINDOW = 7
"""Side of SSIM's uniform window, scikit-image's default."""


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
