"""What one is asked to paint: a photo, its hole, and how; plain values that travel between processes."""

from dataclasses import dataclass

import numpy as np

from inpaint.diffusion.samplers import Sampler
from inpaint.errors import InpaintError


def check_picture(image: np.ndarray, hole: np.ndarray, seed: int, feather: int) -> None:
    """What any painter takes: `image` H x W x 3 uint8, `hole` H x W bool, `seed` 0 .. 2^63 - 1, `feather` >= 0.

    Raises:
        InpaintError: naming the first that is something else.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InpaintError(f"image: {image.dtype} {image.shape}; give uint8 of shape (H, W, 3)")
    if hole.shape != image.shape[:2] or hole.dtype != bool:
        raise InpaintError(f"hole: {hole.dtype} {hole.shape}; give bool of the image's shape {image.shape[:2]}")
    if not 0 <= seed < 2**63:
        raise InpaintError(f"seed {seed}: give 0 to 2^63 - 1")
    if feather < 0:
        raise InpaintError(f"feather {feather}: give pixels, 0 for a hard edge")


@dataclass(frozen=True, kw_only=True, eq=False)
class PaintRequest:
    """One hole to fill."""

    image: np.ndarray
    """H x W x 3 uint8. What lies in the hole is not looked at (9-channel bases) or not kept (4-channel bases)."""
    hole: np.ndarray
    """H x W bool, True = paint."""
    prompt: str
    """As written: a category's token must already be in it."""
    negative_prompt: str = ""
    """What to steer away from; only read where there is guidance."""
    seed: int
    """0 .. 2^63 - 1. The same request and seed give the same picture."""
    steps: int = 25
    """Sampling steps at strength 1."""
    guidance_scale: float = 7.5
    """Classifier-free guidance; up to 1 there is none, which halves the cost."""
    size: int | None = None
    """Side of the square whose area the working shape has; default: what the base was trained at."""
    feather: int = 0
    """Pixels inside the hole over which the original fades into the painting."""
    sampler: Sampler = Sampler.DDIM
    """Each equals the diffusers scheduler of its name."""
    strength: float = 1.0
    """Share of the noise that the hole starts from: 1 forgets what was there, less keeps its layout; in (0, 1]."""
    padding: int | None = None
    """Photo pixels kept around the hole when only its surroundings are painted; None: the whole photo is seen."""

    def __post_init__(self) -> None:
        check_picture(self.image, self.hole, self.seed, self.feather)
        if self.steps < 1:
            raise InpaintError(f"steps {self.steps}: give at least 1")
        if not 0 <= self.guidance_scale <= 100:
            raise InpaintError(f"guidance_scale {self.guidance_scale}: give 0 to 100; 7.5 is usual, up to 1 is none")
        if self.size is not None and self.size < 1:
            raise InpaintError(f"size {self.size}: give the working size in pixels, or leave it out")
        if not 0 < self.strength <= 1:
            raise InpaintError(f"strength {self.strength}: give more than 0 and at most 1; 1 forgets what was there")
        if self.padding is not None and self.padding < 0:
            raise InpaintError(f"padding {self.padding}: give pixels around the hole, or leave it out")
