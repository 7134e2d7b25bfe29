"""What one is asked to paint: a photo, its hole, and how; plain values that travel between processes."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

import numpy as np

from inpaint.diffusion.ddpm import PixelSampling
from inpaint.diffusion.noise_levels import StepSchedule
from inpaint.diffusion.samplers import Sampler, Trajectory, check_schedule, trajectory
from inpaint.diffusion.schedule import NoiseSchedule
from inpaint.errors import InpaintError
from inpaint.models.prompt_text import PromptSettings

if TYPE_CHECKING:  # a DDPM and HTTP start sooner without diffusers
    from inpaint.models.base import BaseInfo

WHOLE: Literal["whole"] = "whole"
"""As padding: the whole photo is seen, however large."""


class Start(StrEnum):
    """What the hole is filled with before noise is added; at strength 1 the noise leaves nothing of it."""

    ORIGINAL = "original"
    """The photo itself."""
    SURROUNDINGS = "surroundings"
    """What is around the hole, ever more blurred towards its middle."""
    NOISE = "noise"
    """The noise itself, once more."""
    NOTHING = "nothing"
    """Latents of zero."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(PromptSettings):
    """How a base paints a hole; None stands for what the base prefers (`resolved`)."""

    sampler: Sampler = Sampler.DDIM
    """Each equals the diffusers scheduler of its name."""
    schedule: StepSchedule | None = None
    """Which noise levels the steps visit; default: as the base's own scheduler says."""
    steps: int | None = None
    """Sampling steps at strength 1; default: what the base prefers, usually 25."""
    strength: float = 1.0
    """Share of the noise that the hole starts from: 1 forgets what was there, less keeps its layout; in (0, 1]."""
    start: Start = Start.ORIGINAL
    """What the hole starts from beside noise, below strength 1."""
    guidance_scale: float | None = None
    """Classifier-free guidance; up to 1 there is none, which halves the cost. Default: the base's, usually 7.5."""
    size: int | None = None
    """Side of the square whose area pictures are painted at; default: what the base was trained at."""
    padding: int | Literal["whole"] | None = None
    """Photo pixels seen around the hole's bounding box; `whole`: all of the photo. Default: what keeps most detail, all
    of a photo that is no larger than it is painted, else the hole and a quarter of its longer side around it."""
    feather: int = 0
    """Pixels inside the hole over which the original fades into the painting."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # A receipt holds plain texts.
        object.__setattr__(self, "sampler", Sampler(self.sampler))
        object.__setattr__(self, "schedule", None if self.schedule is None else StepSchedule(self.schedule))
        check_schedule(self.sampler, self.schedule)
        if self.steps is not None and self.steps < 1:
            raise InpaintError(f"steps {self.steps}: give at least 1")
        if self.size is not None and self.size < 1:
            raise InpaintError(f"size {self.size}: give the working size in pixels, or leave it out")
        if not 0 < self.strength <= 1:
            raise InpaintError(f"strength {self.strength}: give more than 0 and at most 1; 1 forgets what was there")
        if not (self.padding is None or self.padding == WHOLE or (type(self.padding) is int and self.padding >= 0)):
            raise InpaintError(f"padding {self.padding}: give pixels around the hole or {WHOLE}, or leave it out")
        _check_guidance_and_feather(self.guidance_scale, self.feather)

    def of_composite(self) -> "SamplingSettings":
        """All of the picture is seen unless something else is said: panels are painted by what the others show."""
        return self if self.padding is not None else replace(self, padding=WHOLE)

    def resolved(self, base: "BaseInfo") -> "SamplingSettings":
        """The same with steps and guidance decided."""
        steps = base.steps if self.steps is None else self.steps
        guidance_scale = base.guidance_scale if self.guidance_scale is None else self.guidance_scale
        return replace(self, steps=steps, guidance_scale=guidance_scale)

    @property
    def is_guided(self) -> bool:
        """Whether there is classifier-free guidance, with which a step costs two U-Net rows. Resolved settings only."""
        assert self.guidance_scale is not None, "resolve the settings first"
        return self.guidance_scale > 1

    @property
    def steps_taken(self) -> int:
        """Calls of the U-Net: of the steps that `strength` leaves, as in diffusers; Heun's method makes two in each but
        the last. Resolved settings only."""
        assert self.steps is not None, "resolve the settings first"
        return self.sampler.calls(max(1, min(int(self.steps * self.strength), self.steps)))

    def trajectory(self, schedule: NoiseSchedule) -> Trajectory:
        """On a base's noise schedule; of resolved settings. Raises InpaintError for what it cannot be sampled with."""
        assert self.steps is not None, "resolve the settings first"
        return trajectory(schedule, self.sampler, self.steps, self.strength, self.schedule)


def _check_guidance_and_feather(guidance_scale: float | None, feather: int) -> None:
    if guidance_scale is not None and not 0 <= guidance_scale <= 100:
        raise InpaintError(f"guidance_scale {guidance_scale}: give 0 to 100; 7.5 is usual, up to 1 is none")
    if feather < 0:
        raise InpaintError(f"feather {feather}: give pixels, 0 for a hard edge")


def _check_picture(image: np.ndarray, hole: np.ndarray, seed: int) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InpaintError(f"image: {image.dtype} {image.shape}; give uint8 of shape (H, W, 3)")
    if hole.shape != image.shape[:2] or hole.dtype != bool:
        raise InpaintError(f"hole: {hole.dtype} {hole.shape}; give bool of the image's shape {image.shape[:2]}")
    if not 0 <= seed < 2**63:
        raise InpaintError(f"seed {seed}: give 0 to 2^63 - 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class Control:
    """A picture that a ControlNet follows: edges, depth, ..."""

    image: np.ndarray
    """H x W x 3 uint8, of the photo's size; or at any size what is seen of the photo."""
    scale: float = 1.0
    """Weight of what the ControlNet adds; 0: nothing."""
    of_seen: bool = False
    """It was made of what the painter sees (`crop.seen`), not of the whole photo."""

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 10:
            raise InpaintError(f"control scale {self.scale}: give 0 to 10; 1 is usual")


@dataclass(frozen=True, kw_only=True, eq=False)
class PaintRequest:
    """One hole to fill with a base."""

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
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    adapter_weight: float = 1.0
    """Of the LoRA on the painter's base; 0: nothing of it but its tokens."""
    control: Control | None = None
    """Only for painters with a ControlNet."""
    text_alone: bool = False
    """There is no photo (`of_text`): 4-channel bases draw and paint as diffusers' text-to-image pipelines, others as on
    an empty photo."""

    @classmethod
    def of_text(
        cls,
        prompt: str,
        *,
        height: int,
        width: int,
        seed: int,
        sampling: SamplingSettings,
        negative_prompt: str = "",
        adapter_weight: float = 1.0,
    ) -> "PaintRequest":
        """A picture from text alone, painted at the area of `sampling.size`, or else at its own, with sides that the
        base takes. Raises InpaintError for a strength below 1."""
        if height < 1 or width < 1:
            raise InpaintError(f"width {width}, height {height}: give pixels")
        blank = np.zeros((height, width, 3), dtype=np.uint8)
        return cls(
            image=blank,
            hole=np.ones((height, width), dtype=bool),
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            sampling=sampling,
            adapter_weight=adapter_weight,
            text_alone=True,
        )

    def __post_init__(self) -> None:
        _check_picture(self.image, self.hole, self.seed)
        if self.text_alone and not (self.hole.all() and self.sampling.strength == 1):
            raise InpaintError(
                f"strength {self.sampling.strength}: a picture from text alone has nothing to keep; give 1"
            )
        if any("\ud800" <= letter <= "\udfff" for letter in self.prompt + self.negative_prompt):
            raise InpaintError("prompt: it holds half a surrogate pair, which is no text; decode it as UTF-8")
        control = self.control
        if control is not None and not control.of_seen and control.image.shape != self.image.shape:
            raise InpaintError(f"control: {control.image.shape}; give a picture of shape {self.image.shape}")


@dataclass(frozen=True, kw_only=True, eq=False)
class DdpmRequest:
    """One hole to fill with a DDPM, without text."""

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
        _check_picture(self.image, self.hole, self.seed)
        _check_guidance_and_feather(self.guidance_scale, self.feather)
        if self.guidance_scale > 1 and not self.label:
            raise InpaintError(f"guidance_scale {self.guidance_scale} guides towards a class: give a label, too")
