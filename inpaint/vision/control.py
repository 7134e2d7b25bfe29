"""Control pictures: what a ControlNet is shown of a photo, made of what the painter sees of it."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import cv2
import numpy as np

LOW, HIGH = 100, 200
"""Canny's two thresholds, as those had that ControlNets for edges were trained with."""


class ControlKind(StrEnum):
    """What a control picture shows."""

    DEPTH = "depth"
    """How near everything is, by a depth estimation model: near is white."""
    EDGES = "edges"
    """Where brightness changes, white on black; Canny 1986. Costs next to nothing."""


class ControlPictures(Protocol):
    """Makes control pictures."""

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Images H x W x 3 uint8 of any sizes -> pictures of the same sizes, in their order."""
        ...


def edges(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """White where an edge is, else black; H x W x 3 uint8 each."""
    return [np.repeat(cv2.Canny(image, LOW, HIGH)[..., None], 3, axis=2) for image in images]


def control_pictures(kind: ControlKind) -> ControlPictures:
    """What makes pictures of this kind."""
    return edges
