"""LoRA on a base's U-Net and text encoders (Hu et al. 2021), injected by PEFT, named as diffusers names it on disk.

A trained tensor's name is the one it has in `pytorch_lora_weights.safetensors`: `unet.<module>.lora_A.weight`,
`text_encoder.text_model.<module>.lora_B.weight`. The same name is used in checkpoints, so exporting is copying.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from inpaint.errors import InpaintError
from inpaint.models.base import Base

UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
"""Attention projections and both feed-forward layers of every transformer block."""
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
"""Attention projections and both MLP layers of every CLIP layer."""

ADAPTER = "inpaint"
"""PEFT's name for our adapter inside a model."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """What is injected where."""

    rank: int = 8
    """Inner dimension of the two low-rank matrices, >= 1."""
    alpha: float | None = None
    """The update is scaled by alpha / rank; unset: alpha = rank, a scale of 1."""
    dropout: float = 0.0
    """Share of a LoRA layer's inputs zeroed in training, in [0, 1)."""
    text_encoder: bool = True
    """Whether the text encoders get LoRA layers too."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InpaintError(f"rank is {self.rank}: give at least 1")
        if not 0 <= self.dropout < 1:
            raise InpaintError(f"dropout is {self.dropout}: give a share in [0, 1)")
        if self.alpha is not None and self.alpha <= 0:
            raise InpaintError(f"alpha is {self.alpha}: give a positive number, or leave it unset for alpha = rank")

    @property
    def scaled_alpha(self) -> float:
        return float(self.rank if self.alpha is None else self.alpha)


def adapted_models(base: Base) -> dict[str, nn.Module]:
    """The base's models that can carry LoRA layers, by the prefix that diffusers gives them."""
    names = ["text_encoder", "text_encoder_2"]
    return {"unet": base.unet, **dict(zip(names, base.text_encoders, strict=False))}


def inject_lora(base: Base, settings: LoraSettings, *, seed: int) -> None:
    """Freeze the base and add trainable fp32 LoRA layers; equal seeds give equal layers, on every worker."""
    for model in adapted_models(base).values():
        model.requires_grad_(False)
    base.vae.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for prefix, model in adapted_models(base).items():
            if prefix != "unet" and not settings.text_encoder:
                continue
            config = LoraConfig(
                r=settings.rank,
                lora_alpha=settings.scaled_alpha,  # type: ignore[arg-type]
                lora_dropout=settings.dropout,
                target_modules=UNET_TARGETS if prefix == "unet" else TEXT_TARGETS,
                init_lora_weights="gaussian",
            )
            inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for parameter in lora_parameters(base).values():
        parameter.data = parameter.data.float()


def lora_parameters(base: Base) -> dict[str, nn.Parameter]:
    """The LoRA layers' parameters by their name on disk."""
    found = {}
    for prefix, model in adapted_models(base).items():
        for name, parameter in model.named_parameters():
            if f".{ADAPTER}." in name:
                found[disk_name(prefix, name)] = parameter
    return found


def disk_name(prefix: str, name: str) -> str:
    """`unet` + `...to_q.lora_A.inpaint.weight` -> `unet....to_q.lora_A.weight`.

    Text encoders keep the `text_model.` that flattened CLIP models (transformers 5) dropped: diffusers strips it
    where it must, so that old and new clients read the same file.
    """
    name = name.replace(f".{ADAPTER}.", ".")
    if prefix != "unet" and not name.startswith("text_model."):
        name = f"text_model.{name}"
    return f"{prefix}.{name}"


@torch.no_grad()
def load_lora(base: Base, tensors: Mapping[str, Tensor], *, rank: int, alpha: float, scale: float = 1.0) -> None:
    """Inject layers of `rank` and fill them with `tensors`, the update scaled by `scale * alpha / rank`.

    Raises:
        InpaintError: a tensor of the adapter has no place in this base, or one of another shape.
    """
    has_text = any(name.startswith("text_encoder") for name in tensors)
    inject_lora(base, LoraSettings(rank=rank, alpha=alpha * scale, text_encoder=has_text), seed=0)
    places = lora_parameters(base)
    if places.keys() != tensors.keys():
        strays = sorted(places.keys() ^ tensors.keys())
        raise InpaintError(f"the adapter does not fit base {base.name}: {len(strays)} layers differ, first {strays[0]}")
    for name, place in places.items():
        if place.shape != tensors[name].shape:
            raise InpaintError(f"adapter tensor {name} is {tuple(tensors[name].shape)}, expected {tuple(place.shape)}")
        place.copy_(tensors[name])
