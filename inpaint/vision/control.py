"""Control pictures: what a ControlNet is shown of a photo, made of what the painter sees of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, Self

import cv2
import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from inpaint.device import parse_device
from inpaint.vision.pretrained import absolute_name, loaded, revision

LOW, HIGH = 100, 200
"""Canny's two thresholds, as those had that ControlNets for edges were trained with."""
DEPTH_MODELS = {"depth-anything": "depth-anything/Depth-Anything-V2-Small-hf", "dpt": "Intel/dpt-large"}
"""Short names of depth estimation models."""


class ControlKind(StrEnum):
    """What a control picture shows."""

    DEPTH = "depth"
    """How near everything is, by a depth estimation model: near is white."""
    EDGES = "edges"
    """Where brightness changes, white on black (Canny 1986); costs next to nothing."""


class ControlPictures(Protocol):
    """Makes control pictures."""

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Images H x W x 3 uint8 of any sizes -> pictures of the same sizes, in their order."""
        ...


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """What control pictures show."""

    control: ControlKind = ControlKind.DEPTH
    """Depth, or edges, which need no model."""
    depth_model: str = "depth-anything"
    """Of depth: a depth estimation model of transformers: its hub id, a folder that transformers saved, or
    `depth-anything`, `dpt`."""

    @property
    def model(self) -> str:
        """Hub id or absolute path of the depth estimation model."""
        return absolute_name(DEPTH_MODELS.get(self.depth_model, self.depth_model))

    def revisions(self) -> dict[str, str]:
        """What pictures depend on beside the photo. Raises InpaintError for a model that is not there."""
        return {self.control: revision(self.model) if self.control is ControlKind.DEPTH else f"canny {LOW} {HIGH}"}


def load_control(settings: ControlSettings, device: str | torch.device = "cpu") -> ControlPictures:
    """What makes the pictures. Raises InpaintError for a depth model that is not there."""
    return edges if settings.control is ControlKind.EDGES else DepthPictures.load(settings.model, device)


def edges(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """White where an edge is, else black; H x W x 3 uint8 each."""
    return [np.repeat(cv2.Canny(image, LOW, HIGH)[..., None], 3, axis=2) for image in images]


@dataclass(frozen=True, kw_only=True, eq=False)
class DepthPictures:
    """Depth by DPT (Ranftl et al. 2021), Depth Anything (Yang et al. 2024) or another that transformers has; what is
    nearest in an image is white, what is farthest black, as ControlNets for depth were trained."""

    model: Any
    processor: Any

    @classmethod
    def load(cls, name: str, device: str | torch.device = "cpu") -> Self:
        """Raises InpaintError for what is not there."""
        return cls(
            model=loaded(name, AutoModelForDepthEstimation.from_pretrained).eval().to(parse_device(device)),
            processor=loaded(name, AutoImageProcessor.from_pretrained, backend="pil"),
        )

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        # One by one: the processor keeps aspects, and so makes images of unlike sizes.
        return [self._picture(image) for image in images]

    @torch.no_grad()
    def _picture(self, image: np.ndarray) -> np.ndarray:
        pixels = self.processor(images=image, return_tensors="pt").to(self.model.device)
        outputs = self.model(**pixels)
        (made,) = self.processor.post_process_depth_estimation(outputs, target_sizes=[image.shape[:2]])
        low, high = outputs.predicted_depth.min(), outputs.predicted_depth.max()
        # Enlarged by bicubic interpolation, which goes beyond what was predicted.
        depth_HW = made["predicted_depth"].clamp(low, high)
        share_HW = (depth_HW - low) / (high - low).clamp(min=1e-6)
        grey_HW = (share_HW * 255).round().to(torch.uint8).cpu().numpy()
        return np.repeat(grey_HW[..., None], 3, axis=2)
