"""A base's VAE by itself, for those that encode and do nothing else: what it makes of an image, and its weights."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL

from inpaint.data.latents import LatentSpec
from inpaint.models.locate import locate, vae_revision

NUMPY = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "int16"}
"""What holds numbers of a type; of bfloat16, which numpy has not, the bits."""


def vae_dtype(config: Mapping[str, Any], dtype: torch.dtype, *, is_xl: bool) -> torch.dtype:
    """What a VAE computes in, in a base of `dtype`: SDXL's overflows in fp16; diffusers' pipelines cast it up, too."""
    return torch.float32 if is_xl and dtype == torch.float16 and config.get("force_upcast", True) else dtype


def settled(vae: AutoencoderKL, *, is_xl: bool) -> AutoencoderKL:
    """A VAE as it was loaded, in the type that it computes in."""
    return vae if vae_dtype(vae.config, vae.dtype, is_xl=is_xl) == vae.dtype else vae.float()


def load_vae(name: str, *, revision: str | None = None, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """The VAE that `load_base` loads in a base of `dtype`. Raises InpaintError, as it does."""
    source, _ = locate(name, revision, weights=True)
    vae = source.load_vae(dtype)
    return settled(vae, is_xl=source.is_xl).eval()


def latent_spec(name: str, *, revision: str | None, dtype: torch.dtype, sees_masked: bool) -> LatentSpec:
    """What it makes of images, without its weights. Raises InpaintError, as `load_base`."""
    source, _ = locate(name, revision, weights=False)
    config = source.vae_config()
    computed = vae_dtype(config, dtype, is_xl=source.is_xl)
    return LatentSpec(
        encoder=f"{vae_revision(name, revision)} {computed}",
        channels=2 * config["latent_channels"],
        downsample=2 ** (len(config["block_out_channels"]) - 1),
        dtype=NUMPY[computed],
        sees_masked=sees_masked,
    )
