"""Working shapes: photos of any size are painted at a size that the base was trained for.

Images are H x W x 3 uint8, holes H x W bool, True = paint; shapes are (height, width) in pixels.
"""

import math

import numpy as np
from PIL import Image


def working_shape(height: int, width: int, *, size: int, multiple: int) -> tuple[int, int]:
    """About the aspect of `height` x `width` and the area of `size` x `size`, both sides multiples of `multiple`.

    Equal area, not equal longest side: it is what the base was trained for, and makes every photo cost the same.
    """
    scale = size / math.sqrt(height * width)
    high, wide = (max(multiple, round(side * scale / multiple) * multiple) for side in (height, width))
    return high, wide


def resize_image(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Lanczos, as diffusers' image processor; the same array where nothing is to do."""
    if image.shape[:2] == shape:
        return image
    return np.asarray(Image.fromarray(image).resize((shape[1], shape[0]), Image.Resampling.LANCZOS))


def resize_hole(hole: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """True wherever a pixel covers any of the hole, so that nothing of it is left unpainted."""
    if hole.shape == shape:
        return hole
    covered = Image.fromarray(hole.astype(np.float32)).resize((shape[1], shape[0]), Image.Resampling.BOX)
    return np.asarray(covered) > 0
