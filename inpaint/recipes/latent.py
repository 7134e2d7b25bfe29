"""What every training on a Stable Diffusion base shares: the base, and how its rows are seen."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal, Self

import torch
import tyro
from diffusers import AutoencoderKL

from inpaint.data import buckets
from inpaint.data.bank import Bank
from inpaint.data.holes import Feathered, Grown, Hole, OwnMask, Sometimes
from inpaint.data.rows import Manifest
from inpaint.data.sample import Crop, ReadSettings
from inpaint.data.storage import absolute
from inpaint.diffusion.objective import LossSettings
from inpaint.errors import InpaintError
from inpaint.models.base import Base, load_base, read_base_info
from inpaint.models.locate import absolute_name
from inpaint.models.prompt_text import PromptSettings
from inpaint.models.vae import latent_spec, load_vae
from inpaint.train.encoding import Encoding, EncodingSettings, Latents
from inpaint.train.objective import AUTOCAST
from inpaint.train.recipe import Recipe
from inpaint.train.settings import may_change

Preset = Literal["toy", "sd15", "sdxl"]
"""By the base's family."""
MULTIPLE = 8
"""Of all samples' sides."""
SHAPES_PER_SIDE = 16
"""Steps of a side from one bucket's shape to the next, where the base can be seen at them."""


@dataclass(frozen=True, kw_only=True)
class LatentRecipe(PromptSettings, Recipe):
    """A training on a base."""

    presets: ClassVar[Mapping[Preset, Mapping[str, Any]]]
    """What suits each family of bases."""

    base: str = may_change("toy")
    """A folder in diffusers format, a hub id, one `.safetensors` file (each also at a URL), or `toy`."""
    revision: str | None = None
    """Of a hub id: branch, tag or commit."""
    resolution: int | tuple[int, int] | None = None
    """Side of the training images in pixels, or their height and width; unset: the base's own."""
    aspect_buckets: bool = False
    """See each image in the shape, of several of about this area, that cuts least off it, instead of all in one; the
    samples of a step are of one shape."""
    crop: Crop = Crop.CENTRE
    """Which part of an image of another shape is used; it follows the row's own hole."""
    flip_probability: float = 0.0
    """Share of samples mirrored left to right; labels are then learned mirrored, too."""
    caption_dropout: float = 0.05
    """Share of samples with an empty prompt, for classifier-free guidance."""
    full_hole_probability: float = 0.25
    """Share of samples whose hole is the whole image."""
    bank: Bank = Bank()
    """The holes, crops and mirrorings of each row that samples draw among."""
    latents: Latents = may_change(Latents.ONLINE)
    """Where latents come from: a run learns the same with each."""
    encoding: EncodingSettings = may_change(EncodingSettings())
    """Of `latents` cached and streamed."""
    loss: LossSettings = LossSettings()
    preset: Preset = may_change("toy")
    """Whose defaults the other settings have; unset: the one that suits the base, toy for those below 256 px."""

    @classmethod
    def of_preset(cls, preset: Preset, *, data: str, output: str) -> Self:
        """The documented defaults of a preset. Raises InpaintError for an unknown one."""
        if preset not in cls.presets:
            raise InpaintError(f"preset {preset!r}: give {', '.join(cls.presets)}")
        return cls(data=data, output=output, preset=preset, **cls.presets[preset])

    @classmethod
    def defaults(cls, *, preset: Preset | None = None, base: str = "toy") -> Self:
        """A command's, of a preset or of the one that suits the base."""
        if preset is None:
            info = read_base_info(base)
            preset = "sdxl" if info.is_xl else "sd15" if info.default_size >= 256 else "toy"
        return cls.of_preset(preset, data=tyro.MISSING, output=tyro.MISSING)

    def tokens(self) -> Mapping[str, str]:
        """Category -> the token that is added for it."""
        return {}

    def prompt_format(self) -> str:
        """How prompts are written, from `{token}`, `{prompt}` and `{category}`."""
        return "{prompt}"

    def hole(self) -> Hole:
        """What is painted in training."""
        return Sometimes(Feathered(Grown(OwnMask())), self.full_hole_probability)

    def aspects(self) -> tuple[float, ...]:
        shapes = self.shapes() or (_shape(self.resolution or 1),)
        return tuple(height / width for height, width in shapes)

    def check(self) -> None:
        self.loss.check_kept(denoised=read_base_info(self.base, self.revision).in_channels == 9)
        _ = self.shapes()

    def bind(self, rows: Manifest) -> Self:
        info = read_base_info(self.base, self.revision)
        # Workers load exactly what was found here, and from another directory.
        base = absolute_name(self.base)
        return replace(self, base=base, revision=info.revision, resolution=self.resolution or info.default_size)

    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each bucket; none where all rows are seen alike."""
        if not self.aspect_buckets:
            return ()
        usual, multiple = _sizes(self.base, self.revision)
        area = math.prod(_shape(self.resolution or usual))
        # A sixteenth of the side: 64 px of SDXL's 1024, as others have it.
        step = math.isqrt(area) // SHAPES_PER_SIDE // multiple * multiple
        return buckets.shapes(area, multiple=max(multiple, step))

    def size_multiple(self) -> int:
        """That the sides of images must be multiples of, in pixels."""
        return _sizes(self.base, self.revision)[1]

    def in_buckets(self, rows: Manifest) -> Manifest:
        shapes = self.shapes()
        return buckets.in_buckets(rows, shapes) if shapes else rows

    def read_settings(self) -> ReadSettings:
        assert self.resolution is not None, "bound"
        height, width = _shape(self.resolution)
        return ReadSettings(
            height=height,
            width=width,
            shapes=self.shapes(),
            crop=self.crop,
            flip_probability=self.flip_probability,
            hole=self.hole(),
            caption_dropout=self.caption_dropout,
            prompt_format=self.prompt_format(),
            tokens=self.tokens(),
            bank=self.bank,
        )

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of the base's frozen weights."""
        return AUTOCAST.get(self.train.precision, torch.float32)

    def load_vae(self) -> AutoencoderKL:
        """The base's, by itself, as `load` has it in training; of a bound recipe."""
        return load_vae(self.base, revision=self.revision, dtype=self.compute_dtype)

    def how_encoded(self) -> Encoding | None:
        if self.latents is Latents.ONLINE:
            return None
        read, info = self.read_settings(), read_base_info(self.base, self.revision)
        return Encoding(
            latents=self.latents,
            settings=self.encoding,
            spec=latent_spec(
                self.base,
                revision=self.revision,
                dtype=self.compute_dtype,
                sees_masked=info.in_channels == 9,
            ),
            size=(read.height, read.width),
            cache=absolute(self.encoding.cache or f"{self.output}/latents"),
            load_vae=self.load_vae,
            keeps_image=read.keeps_image,
        )

    def load(self, dtype: torch.dtype) -> Base:
        """The base, on the CPU; of a bound recipe."""
        return load_base(self.base, revision=self.revision, dtype=dtype)


@lru_cache
def _sizes(base: str, revision: str | None) -> tuple[int, int]:
    """The base's own size, and that sides must be multiples of. Kept: it is asked for with every reading."""
    info = read_base_info(base, revision)
    return info.default_size, math.lcm(info.size_multiple, MULTIPLE)


def _shape(resolution: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width."""
    return (resolution, resolution) if isinstance(resolution, int) else resolution
