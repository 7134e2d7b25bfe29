"""What lies in the slots: the packed LoRAs and token vectors of the resident adapters, and which of them a batch uses.

Memory is slots x max_rank, taken at the start. Loading is two steps, so that only one copy is on the loop's path:
`pack` in any thread, `put` on the loop, which owns all else here. Who may have which slot is
`inpaint.serve.engine.slot_table`'s business.
"""

from dataclasses import dataclass

from torch import Tensor

from inpaint.models.adapter import Adapter, check_adapter
from inpaint.models.base import Base
from inpaint.models.layers import adapted_models
from inpaint.models.low_rank import LoraPool, Packed


@dataclass(frozen=True, eq=False)
class PackedAdapter:
    """An adapter as a slot holds it."""

    matrices: dict[str, Packed]
    """By the model's prefix."""
    tokens: tuple[dict[str, Tensor], ...]
    """Token -> vector (D), one mapping per text encoder."""


class AdapterSlots:
    """Slot 0 is no adapter."""

    def __init__(self, base: Base, *, slots: int, max_rank: int) -> None:
        """Replaces the adaptable layers of the base's U-Net and text encoders, in place."""
        self.base, self.max_rank = base, max_rank
        self.pools = {
            prefix: LoraPool(model, prefix, slots=slots, max_rank=max_rank)
            for prefix, model in adapted_models(base).items()
        }
        """By the model's prefix, the U-Net's first."""
        self.tokens: dict[int, tuple[dict[str, Tensor], ...]] = {}
        """Slot -> token -> vector (D), one mapping per text encoder."""

    def pack(self, adapter: Adapter) -> PackedAdapter:
        """Checks an adapter against the base and lays it out; reads nothing that the loop changes. Raises InpaintError
        where it does not belong to the base, or its rank is too large for a slot."""
        check_adapter(adapter, self.base.info, max_rank=self.max_rank)
        card = adapter.card
        matrices = {}
        for prefix, pool in self.pools.items():
            packed = pool.pack(adapter.lora, rank=card.rank, scale=card.alpha / card.rank)
            matrix_RW = packed.matrix_RW.to(self.base.dtype)
            if self.base.device.type == "cuda":
                matrix_RW = matrix_RW.pin_memory()
            matrices[prefix] = packed._replace(matrix_RW=matrix_RW)
        every = adapter.embeds or ({},) * len(self.base.text_encoders)
        tokens = tuple({token: embeds[token].float() for token in every[0]} for embeds in every)
        return PackedAdapter(matrices, tokens)

    def put(self, slot: int, packed: PackedAdapter) -> None:
        """Copies an adapter into a slot."""
        for prefix, pool in self.pools.items():
            pool.put(slot, packed.matrices[prefix])
        self.tokens[slot] = packed.tokens
