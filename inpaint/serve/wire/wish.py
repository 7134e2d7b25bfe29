"""What a dialect understood of a request: all of it checked and decided, ready to become orders."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from inpaint.diffusion.samplers import Sampler
from inpaint.models.info import BaseInfo
from inpaint.paint.request import PaintRequest, SamplingSettings
from inpaint.serve.service import AdapterUse, PaintOrder
from inpaint.serve.wire.fields import Fields
from inpaint.serve.wire.intake import Photo
from inpaint.serve.wire.problems import bad
from inpaint.serve.wire.settings import HttpSettings

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How pictures are written."""

    format: str = "png"
    """png, jpeg or webp. Only png keeps the kept pixels bit for bit."""
    quality: int = 95
    """1 to 100, of jpeg and webp."""

    @property
    def media_type(self) -> str:
        return f"image/{self.format}"


@dataclass(frozen=True, kw_only=True)
class How:
    """How to paint, under the names that our own dialect and OpenAI's `extra_body` use."""

    seed: int
    negative_prompt: str
    sampling: SamplingSettings
    """Resolved."""
    timeout_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Wish:
    """A checked request for `n` pictures that differ in their seed."""

    request: PaintRequest
    """Of the first picture."""
    adapters: tuple[AdapterUse, ...]
    n: int
    model: str
    """As the client named it, for the log."""
    timeout_s: float
    previews: int = 0
    encoding: Encoding
    warnings: tuple[str, ...] = ()
    """What was accepted without effect."""
    infotexts: Callable[[int], str] | None = None
    """Seed -> text for A1111's `parameters` chunk."""

    def orders(self, request_id: str) -> list[PaintOrder]:
        """One per picture: seed, seed + 1, ..."""
        return [
            PaintOrder(
                id=request_id if self.n == 1 else f"{request_id}-{number}",
                request=replace(self.request, seed=self.request.seed + number),
                adapters=self.adapters,
                previews=self.previews,
                timeout_s=self.timeout_s,
            )
            for number in range(self.n)
        ]


def random_seed() -> int:
    """Where a request has none: 32 bits, which every client can hold."""
    return secrets.randbelow(2**32)


def read_how(fields: Fields, base: BaseInfo, settings: HttpSettings, n: int, *, size: bool) -> How:
    """Read the settings. Args: size: whether `size` is the working size (OpenAI's `size` is another thing)."""
    seed = fields.integer("seed", None, 0, LARGEST_SEED - n + 1)
    sampling = SamplingSettings(
        sampler=Sampler(fields.choice("sampler", Sampler.DDIM, [str(sampler) for sampler in Sampler])),
        steps=fields.whole("steps", min(base.steps, settings.max_steps), 1, settings.max_steps),
        guidance_scale=fields.number("guidance_scale", base.guidance_scale, 0, 100),
        strength=fields.number("strength", 1.0, 0, 1, above=True),
        padding=fields.integer("padding", None, 0, settings.max_padding),
        feather=fields.whole("feather", 0, 0, settings.max_feather),
        size=fields.integer("size", None, base.size_multiple, largest_size(base)) if size else None,
    )
    return How(
        seed=random_seed() if seed is None else seed,
        negative_prompt=fields.text("negative_prompt", "", most=settings.max_prompt_chars),
        sampling=sampling,
        timeout_s=fields.number("timeout_s", settings.timeout_s, 0, settings.max_timeout_s, above=True),
    )


def largest_size(base: BaseInfo) -> int:
    """Of a working size: four times the pixels that the base was trained at."""
    return 2 * base.default_size


def request_of(photo: Photo, hole: np.ndarray, prompt: str, how: How) -> PaintRequest:
    """The request for the first picture."""
    return PaintRequest(
        image=photo.image,
        hole=hole,
        prompt=prompt,
        negative_prompt=how.negative_prompt,
        seed=how.seed,
        sampling=how.sampling,
    )


def check_area(photo: Photo, n: int, field: str, settings: HttpSettings) -> None:
    """Raise Problem where all pictures together have too many pixels."""
    height, width = photo.image.shape[:2]
    if n * height * width > settings.max_answer_pixels:
        most = settings.max_answer_pixels
        raise bad(
            field,
            f"{n} pictures of {width} x {height} = {n * height * width:,} pixels, the limit is {most:,}",
            "too_many_pixels",
        )


def read_encoding(fields: Fields, quality_field: str) -> Encoding:
    """`output_format` and its quality."""
    form = fields.choice("output_format", "png", ["png", "jpeg", "jpg", "webp"])
    quality = fields.whole(quality_field, 95, 0, 100)
    return Encoding(format="jpeg" if form == "jpg" else form, quality=max(1, quality))
