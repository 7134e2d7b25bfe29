"""What a DDPM is asked to paint; plain values that travel between processes."""

from dataclasses import dataclass, field

import numpy as np

from inpaint.diffusion.repaint import Sampling
from inpaint.errors import InpaintError


@dataclass(frozen=True, kw_only=True, eq=False)
class DdpmRequest:
    """One hole to fill, without text."""

    image: np.ndarray
    """H x W x 3 uint8. What lies in the hole is not looked at."""
    hole: np.ndarray
    """H x W bool, True = paint."""
    seed: int = 0
    """0 .. 2^63 - 1. The same request and seed give the same picture."""
    sampling: Sampling = field(default_factory=Sampling)
    """Sampler, steps, resampling."""
    label: str = ""
    """Name of the class that shall be painted, where the model has classes; empty: any."""
    guidance_scale: float = 1.0
    """Classifier-free guidance towards the label (Ho 2022); up to 1 there is none, which halves the cost."""
    feather: int = 0
    """Pixels inside the hole over which the original fades into the painting."""

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise InpaintError(f"image: {self.image.dtype} {self.image.shape}; give uint8 of shape (H, W, 3)")
        if self.hole.shape != self.image.shape[:2] or self.hole.dtype != bool:
            raise InpaintError(
                f"hole: {self.hole.dtype} {self.hole.shape}; give bool of the image's shape {self.image.shape[:2]}"
            )
        if not 0 <= self.seed < 2**63:
            raise InpaintError(f"seed {self.seed}: give 0 to 2^63 - 1")
        if not 0 <= self.guidance_scale <= 100:
            raise InpaintError(f"guidance_scale {self.guidance_scale}: give 0 to 100, up to 1 is none")
        if self.guidance_scale > 1 and not self.label:
            raise InpaintError(f"guidance_scale {self.guidance_scale} guides towards a class: give a label, too")
        if self.feather < 0:
            raise InpaintError(f"feather {self.feather}: give pixels, 0 for a hard edge")
