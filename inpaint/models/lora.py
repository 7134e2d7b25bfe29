"""LoRA on a base's U-Net and text encoders (Hu et al. 2021), injected by PEFT, named as diffusers names it on disk.

A trained tensor's name is the one it has in `pytorch_lora_weights.safetensors`: `unet.<module>.lora_A.weight`,
`text_encoder.text_model.<module>.lora_B.weight`. The same name is used in checkpoints, so exporting is copying.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from inpaint.errors import InpaintError
from inpaint.models.base import Base
from inpaint.models.layers import adaptable_layers, adapted_models, disk_name, is_trained

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
    unet: bool = True
    """Whether the U-Net gets LoRA layers."""
    text_encoder: bool = True
    """Whether the text encoders do."""

    def __post_init__(self) -> None:
        if not self.unet and not self.text_encoder:
            raise InpaintError("neither U-Net nor text encoders get LoRA layers: nothing is trained; give one of them")
        if self.rank < 1:
            raise InpaintError(f"rank is {self.rank}: give at least 1")
        if not 0 <= self.dropout < 1:
            raise InpaintError(f"dropout is {self.dropout}: give a share in [0, 1)")
        if self.alpha is not None and self.alpha <= 0:
            raise InpaintError(f"alpha is {self.alpha}: give a positive number, or leave it unset for alpha = rank")

    @property
    def scaled_alpha(self) -> float:
        return float(self.rank if self.alpha is None else self.alpha)


def inject_lora(base: Base, settings: LoraSettings, *, seed: int, only: Collection[str] | None = None) -> None:
    """Freeze the base and add trainable fp32 LoRA layers; equal seeds give equal layers, on every worker. `only`
    names layers on disk; unset: those that are trained."""
    for model in adapted_models(base).values():
        model.requires_grad_(False)
    base.vae.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for prefix, model in adapted_models(base).items():
            layers = adaptable_layers(model, prefix)
            paths = [path for name, (path, _) in layers.items() if (is_trained(name) if only is None else name in only)]
            if not paths or not (settings.unet if prefix == "unet" else settings.text_encoder):
                continue
            config = LoraConfig(
                r=settings.rank,
                lora_alpha=settings.scaled_alpha,  # type: ignore[arg-type]
                lora_dropout=settings.dropout,
                target_modules=paths,
                init_lora_weights="gaussian",
            )
            inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for parameter in lora_parameters(base).values():
        parameter.data = parameter.data.float()


def lora_parameters(base: Base) -> dict[str, nn.Parameter]:
    """The LoRA layers' parameters by their name on disk."""
    return {
        disk_name(prefix, name.replace(f".{ADAPTER}.", ".")): parameter
        for prefix, model in adapted_models(base).items()
        for name, parameter in model.named_parameters()
        if f".{ADAPTER}." in name
    }


@torch.no_grad()
def load_lora(base: Base, tensors: Mapping[str, Tensor], *, rank: int, alpha: float) -> None:
    """Inject layers of `rank` and fill them with `tensors`, which fit (`inpaint.models.adapter.check_adapter`); the
    update is scaled by `alpha / rank`."""
    layers = {name.rpartition(".lora_")[0] for name in tensors}
    inject_lora(base, LoraSettings(rank=rank, alpha=alpha), seed=0, only=layers)
    for name, parameter in lora_parameters(base).items():
        parameter.copy_(tensors[name].reshape(parameter.shape))


def weigh_lora(base: Base, weight: float) -> None:
    """Multiply the update of the injected layers by `weight`, whatever it was before."""
    for model in adapted_models(base).values():
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.set_scale(ADAPTER, weight)
