"""Adapters for tests: made from the shipped ones, as many categories as wanted, each with its look; or made up."""

import re
from dataclasses import replace
from pathlib import Path

import torch

from inpaint.export.adapter_folder import load_adapter, save_adapter
from inpaint.models.adapter import Adapter, AdapterCard
from inpaint.models.base import read_base_info
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


def made_up(base: str | Path, seed: int, *, rank: int = 4, tokens: tuple[str, ...] = ("CDP_X",)) -> Adapter:
    """An adapter with large random values, so that painting with another one shows."""
    info = read_base_info(str(base))
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).half()

    lora = {}
    for layer, (outputs, inputs) in info.layers.items():
        tail = (1, 1) if layer.endswith((".proj_in", ".proj_out")) else ()  # convolutions in the bases of tests
        lora |= {
            f"{layer}.lora_A.weight": drawn(rank, inputs, *tail) / 10,
            f"{layer}.lora_B.weight": drawn(outputs, rank, *tail) / 10,
        }
    first = [token for token in tokens if not re.search(r"_\d$", token)]
    card = AdapterCard(
        base=info.name,
        base_revision=info.revision,
        tokens={f"C{i}": token for i, token in enumerate(first)},
        prompt_format="{token} background, {prompt}",
        resolution=64,
        rank=rank,
        alpha=2.0 * rank,
        samples=1,
        manifest="m",
    )
    embeds = tuple({token: drawn(width) / 2 for token in tokens} for width in info.text_widths)
    return Adapter(card=card, lora=lora, embeds=embeds)
