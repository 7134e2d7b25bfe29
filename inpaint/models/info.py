"""What is known of a base without its weights: what it takes, what it prefers, and where a LoRA can go."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from inpaint.errors import InpaintError
from inpaint.models.files import locate
from inpaint.models.layers import adaptable_layers, disk_name

PREFERENCES_FILE = "inpaint.json"
"""In a base's folder, optional: `{"guidance_scale": ..., "steps": ...}`. Not part of its revision."""
TEXT_ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
"""By their folder's name, which is their LoRA layers' prefix, too."""


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
    """What the base prefers where nobody says otherwise; 7.5 unless the base says so."""
    steps: int
    """The same of sampling steps; 25 unless the base says so."""


def read_base_info(name: str, revision: str | None = None) -> BaseInfo:
    """The same as `load_base(name).info`; of a hub id only the configuration files are downloaded.

    Raises:
        InpaintError: not found, not a supported base, or not of that revision.
    """
    files = locate(name, revision, weights=False)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(files.config("unet"))
        encoders = [TEXT_ENCODERS[part](CLIPTextConfig(**files.config(part))) for part in files.text_encoders]
    return info_of(
        files.name,
        files.revision,
        unet=unet,
        text_encoders=encoders,
        vae_config=files.config("vae"),
        **preferences(files.folder),
    )


def info_of(
    name: str,
    revision: str,
    *,
    unet: UNet2DConditionModel,
    text_encoders: Sequence[Any],
    vae_config: Mapping[str, Any],
    guidance_scale: float = 7.5,
    steps: int = 25,
) -> BaseInfo:
    """What modules are, wherever they come from.

    Raises:
        InpaintError: a U-Net that takes other inputs than ours.
    """
    channels = int(unet.config.in_channels)
    if channels not in (4, 9):
        raise InpaintError(
            f"{name}: its U-Net takes {channels} input channels; supported are 9 (inpainting) and 4 (text to image)"
        )
    if unet.config.time_cond_proj_dim is not None:
        raise InpaintError(f"{name}: a distilled U-Net that takes its guidance scale as input (LCM) is not supported")
    downsample = 2 ** (len(vae_config["block_out_channels"]) - 1)
    models: dict[str, nn.Module] = {"unet": unet, **dict(zip(TEXT_ENCODERS, text_encoders, strict=False))}
    return BaseInfo(
        name=name,
        revision=revision,
        in_channels=channels,
        default_size=int(unet.config.sample_size) * downsample,
        size_multiple=downsample * 2 ** (len(unet.config.block_out_channels) - 1),
        downsample=downsample,
        is_xl=len(text_encoders) == 2,
        layers={
            disk_name(prefix, path): (layer.out_features, layer.in_features)
            for prefix, model in models.items()
            for path, layer in adaptable_layers(model, prefix).items()
        },
        text_widths=tuple(int(encoder.config.hidden_size) for encoder in text_encoders),
        guidance_scale=guidance_scale,
        steps=steps,
    )


def preferences(folder: Path) -> dict[str, Any]:
    """`guidance_scale` and `steps` as the base's folder states them. Raises InpaintError for anything else."""
    path = folder / PREFERENCES_FILE
    if not path.is_file():
        return {}
    try:
        given: Any = json.loads(path.read_text(encoding="utf-8"))
        if given.keys() <= {"guidance_scale", "steps"}:
            return given
    except (ValueError, AttributeError):
        pass
    raise InpaintError(f'{path}: give {{"guidance_scale": 7.5, "steps": 25}}, or one of the two')
