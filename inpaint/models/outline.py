"""What must be known of a base before and without its weights: its shapes, and the places where an adapter can go."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from inpaint.models.base import base_configs
from inpaint.models.lora import TEXT_TARGETS, UNET_TARGETS, disk_name

_TEXT_MODELS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}


@dataclass(frozen=True, kw_only=True)
class BaseOutline:
    """A base without its weights."""

    revision: str
    """As `Base.revision`."""
    default_size: int
    """As `Base.default_size`, pixels."""
    size_multiple: int
    """As `Base.size_multiple`, pixels."""
    places: Mapping[str, tuple[int, int]]
    """Layer that can carry a LoRA, as on disk (`unet.<module>`) -> its (outputs, inputs)."""
    text_widths: tuple[int, ...]
    """Width of the token embeddings of each text encoder."""


def outline_base(name: str, revision: str | None = None) -> BaseOutline:
    """The outline of a base (folder, hub id or `toy`); of a hub id only the configuration files are downloaded.

    Raises:
        InpaintError: not found, or not a supported base.
    """
    folder, found = base_configs(name, revision)
    models: dict[str, Any] = {}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(_config(folder, "unet"))
        for part, kind in _TEXT_MODELS.items():
            if (folder / part).is_dir():
                models[part] = kind(CLIPTextConfig(**_config(folder, part)))
    places = _linear_layers("unet", unet, UNET_TARGETS)
    for part, model in models.items():
        places |= _linear_layers(part, model, TEXT_TARGETS)
    downsample = 2 ** (len(_config(folder, "vae")["block_out_channels"]) - 1)
    return BaseOutline(
        revision=found,
        default_size=int(unet.config.sample_size) * downsample,
        size_multiple=downsample * 2 ** (len(unet.config.block_out_channels) - 1),
        places=places,
        text_widths=tuple(int(m.config.hidden_size) for m in models.values()),
    )


def _config(folder: Path, part: str) -> dict[str, Any]:
    return dict(json.loads((folder / part / "config.json").read_text(encoding="utf-8")))


def _linear_layers(prefix: str, model: nn.Module, targets: list[str]) -> dict[str, tuple[int, int]]:
    """Layers whose name ends with a target, as PEFT chooses them."""
    return {
        disk_name(prefix, name): (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(name == t or name.endswith(f".{t}") for t in targets)
    }
