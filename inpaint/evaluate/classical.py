"""Fills without learning, as yardsticks: OpenCV's Telea and Navier-Stokes, scikit-image's biharmonic, the mean colour.

scikit-image comes with `pip install inpaint[evaluate]`; nothing else in the package needs it.
Images are H x W x 3 uint8, holes H x W bool, True = paint. Kept pixels come back as they are.
"""

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from inpaint.errors import InpaintError

RADIUS = 3
"""Pixels around each one that OpenCV looks at: its documentation's value."""


def mean_colour(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The mean of the kept pixels everywhere in the hole."""
    return np.where(hole[..., None], np.rint(image[~hole].mean(axis=0)).astype(np.uint8), image)


def _opencv(image: np.ndarray, hole: np.ndarray, *, method: str) -> np.ndarray:
    filled = cv2.inpaint(np.ascontiguousarray(image), hole.astype(np.uint8) * 255, RADIUS, getattr(cv2, method))
    return np.where(hole[..., None], filled, image)


def _biharmonic(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    try:
        from skimage.restoration import inpaint_biharmonic
    except ImportError as error:
        raise InpaintError("this fill needs scikit-image: pip install 'inpaint[evaluate]'") from error
    filled = inpaint_biharmonic(image / 255, hole, channel_axis=2)
    return np.where(hole[..., None], np.rint(filled.clip(0, 1) * 255).astype(np.uint8), image)


FILLS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "telea": partial(_opencv, method="INPAINT_TELEA"),
    "navier_stokes": partial(_opencv, method="INPAINT_NS"),
    "biharmonic": _biharmonic,
}
"""Fast marching from the edge inwards (Telea 2004); edges continued as in a fluid's flow (Bertalmio 2001); the
smoothest surface that meets the hole's edge in value and slope (Damelin 2018)."""
