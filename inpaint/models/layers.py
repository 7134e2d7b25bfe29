"""The layers of a base that a LoRA can change, and what they are called on disk: the one place that knows."""

from typing import Any, Protocol

from torch import nn

UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
"""Attention projections and both feed-forward layers of every transformer block."""
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""Attention projections and both MLP layers of every CLIP layer."""


class HasModels(Protocol):
    """A `Base`, or its `Modules`."""

    @property
    def unet(self) -> nn.Module: ...

    @property
    def text_encoders(self) -> list[Any]: ...


def adapted_models(base: HasModels) -> dict[str, nn.Module]:
    """The base's models that can carry LoRA layers, by the prefix that diffusers gives them."""
    return {"unet": base.unet, **dict(zip(("text_encoder", "text_encoder_2"), base.text_encoders, strict=False))}


def adaptable_layers(model: nn.Module, prefix: str) -> dict[str, nn.Linear]:
    """The linear layers of a U-Net (`unet`) or CLIP text model (`text_encoder...`) by their path in it."""
    targets = UNET_TARGETS if prefix == "unet" else TEXT_TARGETS
    ends = tuple(f".{target}" for target in targets)
    return {
        path: module
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
