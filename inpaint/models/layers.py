"""The modules of a base, which of their layers a LoRA can change, and what these are called on disk."""

from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

_TRAINED_IN_UNET = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
"""Attention projections and both feed-forward layers of every transformer block."""
_UNET_TARGETS = (*_TRAINED_IN_UNET, "proj_in", "proj_out")
"""And the layers around the blocks, which other trainers' LoRAs have, too."""
_TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""Attention projections and both MLP layers of every CLIP layer."""


@dataclass(kw_only=True)
class Modules:
    """What has weights in a base."""

    text_encoders: list[Any]
    """CLIPTextModel, and for SDXL also CLIPTextModelWithProjection."""
    vae: AutoencoderKL
    unet: UNet2DConditionModel


def adapted_models(base: Modules) -> dict[str, nn.Module]:
    """The models that can carry LoRA layers, by the prefix that diffusers gives them."""
    return {"unet": base.unet, **dict(zip(("text_encoder", "text_encoder_2"), base.text_encoders, strict=False))}


def adaptable_layers(model: nn.Module, prefix: str) -> dict[str, tuple[str, nn.Linear | nn.Conv2d]]:
    """Name on disk -> path and module of the layers of one of `adapted_models` that a LoRA can change: linear ones, of
    which some bases have a few as convolutions of 1 x 1."""
    ends = tuple(f".{target}" for target in (_UNET_TARGETS if prefix == "unet" else _TEXT_TARGETS))
    return {
        disk_name(prefix, path): (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and f".{path}".endswith(ends)
    }


def is_trained(name: str) -> bool:
    """Whether our own training gives this layer (on disk) a LoRA where nothing else is said."""
    return not name.startswith("unet.") or name.endswith(tuple(f".{target}" for target in _TRAINED_IN_UNET))


def features(layer: nn.Linear | nn.Conv2d) -> tuple[int, int]:
    """In and out."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    return layer.in_features, layer.out_features


def disk_name(prefix: str, path: str) -> str:
    """Module path -> layer's name on disk: `unet` + `mid_block...to_q` -> `unet.mid_block...to_q`.

    Text encoders keep the `text_model.` that flattened CLIP models (transformers 5) dropped: diffusers strips it
    where it must, so that old and new clients read the same file.
    """
    if prefix != "unet" and not path.startswith("text_model."):
        path = f"text_model.{path}"
    return f"{prefix}.{path}"
