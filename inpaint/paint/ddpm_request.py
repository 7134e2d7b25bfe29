"""What a DDPM is asked to paint; plain values that travel between processes."""

from dataclasses import dataclass, field

import numpy as np

from inpaint.diffusion.repaint import PixelSampling
from inpaint.errors import InpaintError
from inpaint.paint.request import check_feather, check_picture


@dataclass(frozen=True, kw_only=True, eq=False)
class DdpmRequest:
    """One hole to fill, without text."""

    image: np.ndarray
    """H x W x 3 uint8. What lies in the hole is not looked at."""
    hole: np.ndarray
    """H x W bool, True = paint."""
    seed: int = 0
    """0 .. 2^63 - 1. The same request and seed give the same picture."""
    sampling: PixelSampling = field(default_factory=PixelSampling)
    """Sampler, steps, resampling."""
    label: str = ""
    """Name of the class that shall be painted, where the model has classes; empty: any."""
    guidance_scale: float = 1.0
    """Classifier-free guidance towards the label (Ho 2022); up to 1 there is none, which halves the cost."""
    feather: int = 0
    """Pixels inside the hole over which the original fades into the painting."""

    def __post_init__(self) -> None:
        check_picture(self.image, self.hole, self.seed)
        check_feather(self.feather)
        if not 0 <= self.guidance_scale <= 100:
            raise InpaintError(f"guidance_scale {self.guidance_scale}: give 0 to 100, up to 1 is none")
        if self.guidance_scale > 1 and not self.label:
            raise InpaintError(f"guidance_scale {self.guidance_scale} guides towards a class: give a label, too")
