"""What is known of a base without its weights: what it takes, what it prefers, and where a LoRA can go."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from inpaint.errors import InpaintError
from inpaint.models.architectures import Modules
from inpaint.models.layers import adaptable_layers, adapted_models, disk_name
from inpaint.models.locate import locate


@dataclass(frozen=True, kw_only=True)
class BaseInfo:
    """A base without its weights."""

    name: str
    """What the user called it: a folder, a hub id, a file, or `toy`."""
    revision: str
    """Hub commit, or sha256 over the files that are loaded: the same string means the same weights."""
    in_channels: int
    """U-Net input channels: 9 (latents, hole, masked image's latents) or 4 (latents alone)."""
    default_size: int
    """The side, in pixels, that the U-Net was trained at."""
    size_multiple: int
    """Working heights and widths, in pixels, must be multiples of this."""
    downsample: int
    """Pixels per latent, along each side."""
    is_xl: bool
    """SDXL: two text encoders, and the U-Net is told the image's size."""
    layers: Mapping[str, tuple[int, int]]
    """Layer that can carry a LoRA, by its name on disk (`unet.<module>`) -> its (outputs, inputs)."""
    text_widths: tuple[int, ...]
    """Width of the token embeddings of each text encoder."""
    guidance_scale: float
    """What the base prefers where nobody says otherwise."""
    steps: int
    """The same of sampling steps."""


def read_base_info(name: str, revision: str | None = None) -> BaseInfo:
    """The same as `load_base(name).info`, from configuration files or a header alone.

    Raises:
        InpaintError: not found, not a supported base, or not of that revision.
    """
    source, found = locate(name, revision, weights=False)
    with torch.device("meta"):
        modules = source.blank()
    return info_of(name, found, modules, **source.preferences())


def info_of(name: str, revision: str, modules: Modules, *, guidance_scale: float = 7.5, steps: int = 25) -> BaseInfo:
    """What modules are, wherever they come from and whether or not they have weights.

    Raises:
        InpaintError: a U-Net that takes other inputs than ours.
    """
    encoders, vae, unet = modules
    channels = int(unet.config.in_channels)
    if channels not in (4, 9):
        raise InpaintError(
            f"{name}: its U-Net takes {channels} input channels; supported are 9 (inpainting) and 4 (text to image)"
        )
    if unet.config.time_cond_proj_dim is not None:
        raise InpaintError(f"{name}: a distilled U-Net that takes its guidance scale as input (LCM) is not supported")
    downsample = 2 ** (len(vae.config.block_out_channels) - 1)
    return BaseInfo(
        name=name,
        revision=revision,
        in_channels=channels,
        default_size=int(unet.config.sample_size) * downsample,
        size_multiple=downsample * 2 ** (len(unet.config.block_out_channels) - 1),
        downsample=downsample,
        is_xl=len(encoders) == 2,
        layers={
            disk_name(prefix, path): (layer.out_features, layer.in_features)
            for prefix, model in adapted_models(modules).items()
            for path, layer in adaptable_layers(model, prefix).items()
        },
        text_widths=tuple(int(encoder.config.hidden_size) for encoder in encoders),
        guidance_scale=float(guidance_scale),
        steps=int(steps),
    )
