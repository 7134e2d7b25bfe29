"""The modules of a base, which of their layers a LoRA can change, and what these are called on disk."""

from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

_UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
"""Attention projections and both feed-forward layers of every transformer block."""
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


def adaptable_layers(model: nn.Module, prefix: str) -> dict[str, tuple[str, nn.Linear]]:
    """Name on disk -> path and module of the linear layers of one of `adapted_models` that a LoRA can change."""
    ends = tuple(f".{target}" for target in (_UNET_TARGETS if prefix == "unet" else _TEXT_TARGETS))
    return {
        disk_name(prefix, path): (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and f".{path}".endswith(ends)
    }


def disk_name(prefix: str, path: str) -> str:
    """Module path -> layer's name on disk: `unet` + `mid_block...to_q` -> `unet.mid_block...to_q`.

    Text encoders keep the `text_model.` that flattened CLIP models (transformers 5) dropped: diffusers strips it
    where it must, so that old and new clients read the same file.
    """
    if prefix != "unet" and not path.startswith("text_model."):
        path = f"text_model.{path}"
    return f"{prefix}.{path}"
