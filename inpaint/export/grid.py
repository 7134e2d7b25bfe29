"""Pictures in one picture. A file of its own, for a training's workers import it and a card brings diffusers."""

from collections.abc import Sequence

import numpy as np


def grid(pictures: Sequence[np.ndarray], *, columns: int) -> np.ndarray:
    """Pictures of any sizes in rows of `columns`, each centred in an equal white cell; uint8 H W 3."""
    height = max(picture.shape[0] for picture in pictures)
    width = max(picture.shape[1] for picture in pictures)
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * height, min(columns, len(pictures)) * width, 3), 255, dtype=np.uint8)
    for number, picture in enumerate(pictures):
        top = number // columns * height + (height - picture.shape[0]) // 2
        left = number % columns * width + (width - picture.shape[1]) // 2
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas
