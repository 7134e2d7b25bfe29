"""Adapters made from the shipped ones, for tests of the service: as many categories as wanted, each with its look."""

from dataclasses import replace
from pathlib import Path

import torch

from inpaint.export.adapter_folder import load_adapter, save_adapter
from inpaint.models.adapter import Adapter
from inpaint.models.locate import TOY_BASE

SHIPPED = TOY_BASE.parent / "adapters"


def variant(category: str, seed: int, *, of: str = "CDP_COS") -> Adapter:
    """The shipped adapter `of`, for another category, its numbers noised by a third of their spread."""
    shipped = load_adapter(SHIPPED / of)
    generator = torch.Generator().manual_seed(seed)

    def noised(tensor: torch.Tensor) -> torch.Tensor:
        plain = tensor.float()
        return (plain + plain.std() * torch.randn(plain.shape, generator=generator) / 3).to(tensor.dtype)

    (token,) = shipped.card.tokens.values()
    return Adapter(
        card=replace(shipped.card, tokens={category: category}, files={}),
        lora={name: noised(tensor) for name, tensor in shipped.lora.items()},
        embeds=tuple({category: noised(embeds[token])} for embeds in shipped.embeds),
    )


def without_tokens(adapter: Adapter) -> Adapter:
    """The same as a plain LoRA."""
    return replace(adapter, card=replace(adapter.card, tokens={}, prompt_format="{prompt}"), embeds=())


def write_variant(root: Path, category: str, seed: int, **how: str) -> Path:
    """The same as an adapter folder `root/category`."""
    return save_adapter(root / category, variant(category, seed, **how))
