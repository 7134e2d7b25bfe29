"""The adapter bank: all resident adapters of a base, and which of them a batch uses.

Guaranteed: memory is slots x max_rank, taken at the start; an adapter in use is never evicted; a resident one costs
nothing to use again; the least recently used of the others makes room. Not thread-safe but for `pack` and `resident`:
the engine's loop owns it. Loading is two steps, so that only one copy is on the loop's path: `pack` anywhere, `put` on
the loop.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from inpaint.errors import InpaintError
from inpaint.models.adapter import Adapter, check_adapter
from inpaint.models.base import Base
from inpaint.models.layers import adapted_models
from inpaint.models.low_rank import LoraLayout, LoraPool, Uses, adapt


@dataclass(frozen=True, eq=False)
class Packed:
    """An adapter as the bank holds it."""

    matrices: dict[str, Tensor]
    """Model's prefix -> R x W."""
    rank: int
    tokens: tuple[dict[str, Tensor], ...]
    """Token -> vector (D), one mapping per text encoder."""


class AdapterSlots:
    """Slots for adapters. Slot 0 is no adapter; slots 1 to `slots` are lent to digests."""

    def __init__(self, base: Base, *, slots: int, max_rank: int) -> None:
        """Replaces the adaptable layers of the base's U-Net and text encoders, in place."""
        self.base, self.slots, self.max_rank = base, slots, max_rank
        self._layouts: dict[str, LoraLayout] = {p: adapt(model, p) for p, model in adapted_models(base).items()}
        self._slabs = {
            prefix: LoraPool(layout, slots, max_rank, base.device, base.dtype)
            for prefix, layout in self._layouts.items()
        }
        self._free = list(range(slots, 0, -1))
        self._slot_of: dict[str, int] = {}
        self._packed: dict[str, Packed] = {}
        self._users: dict[str, int] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        """Resident and unused, least recently used first."""
        self._installed: dict[str, object] = {}
        self.evictions = 0

    def pack(self, adapter: Adapter) -> Packed:
        """Checks an adapter against the base and lays it out; reads nothing that the loop changes.

        Raises:
            InpaintError: it does not belong to the base, or its rank is over the bank's.
        """
        check_adapter(adapter, self.base.info, max_rank=self.max_rank)
        card = adapter.card
        matrices = {}
        for prefix, layout in self._layouts.items():
            own = {name: tensor for name, tensor in adapter.lora.items() if name.startswith(f"{prefix}.")}
            packed_RW = layout.pack(own, rank=card.rank, scale=card.alpha / card.rank).to(self.base.dtype)
            matrices[prefix] = packed_RW.pin_memory() if self.base.device.type == "cuda" else packed_RW
        every = adapter.embeds or ({},) * len(self.base.text_encoders)
        tokens = tuple({token: embeds[token].float() for token in every[0]} for embeds in every)
        return Packed(matrices, card.rank, tokens)

    def resident(self) -> set[str]:
        """Digests that are loaded."""
        return set(self._packed.copy())

    def in_use(self) -> int:
        """How many resident adapters are in use."""
        return len(self._users)

    def missing(self, digests: Sequence[str]) -> list[str]:
        """Those that have no slot yet."""
        return [digest for digest in dict.fromkeys(digests) if digest not in self._slot_of]

    def acquire(self, digests: Sequence[str]) -> bool:
        """Take a slot for each of them, all or none; False: all slots are in use, try again later.

        Those that were `missing` must be loaded and `put`, or given up with `forget`.

        Raises:
            InpaintError: more adapters than there are slots.
        """
        wanted = list(dict.fromkeys(digests))
        if len(wanted) > self.slots:
            raise InpaintError(f"{len(wanted)} adapters in one order: this service takes at most {self.slots}")
        missing = self.missing(wanted)
        room = len(self._free) + sum(digest not in wanted for digest in self._idle)
        if len(missing) > room:
            return False
        for digest in wanted:
            self._idle.pop(digest, None)
            self._users[digest] = self._users.get(digest, 0) + 1
        for digest in missing:
            self._slot_of[digest] = self._free.pop() if self._free else self._evict()
        return True

    def _evict(self) -> int:
        digest, _ = self._idle.popitem(last=False)
        assert digest not in self._users
        self.evictions += 1
        del self._packed[digest]
        return self._slot_of.pop(digest)

    def release(self, digests: Sequence[str]) -> None:
        """Give back what `acquire` took; the adapters stay resident until their slot is needed."""
        for digest in dict.fromkeys(digests):
            self._users[digest] -= 1
            if self._users[digest]:
                continue
            del self._users[digest]
            if digest in self._packed:
                self._idle[digest] = None
            elif digest in self._slot_of:
                self._free.append(self._slot_of.pop(digest))

    def put(self, digest: str, packed: Packed) -> bool:
        """Copy a loaded adapter into its slot; False: nobody waits for it any more."""
        if digest not in self._users or digest in self._packed:
            return False
        slot = self._slot_of[digest]
        for prefix, slab in self._slabs.items():
            matrix_RW = packed.matrices[prefix]
            # What the slot held before is not read: gathers are cut to ranks that are zero-padded here.
            slab.packed_SRW[slot, : packed.rank].copy_(matrix_RW, non_blocking=True)
            slab.packed_SRW[slot, packed.rank :].zero_()
        self._packed[digest] = packed
        return True

    def is_ready(self, digests: Sequence[str]) -> bool:
        """Whether all are loaded."""
        return all(digest in self._packed for digest in digests)

    def slot(self, digest: str) -> int:
        """Of a loaded adapter."""
        return self._slot_of[digest]

    def tokens(self, digest: str) -> tuple[dict[str, Tensor], ...]:
        """Of a loaded adapter: token -> vector, one mapping per text encoder."""
        return self._packed[digest].tokens

    def gather(self, prefix: str, uses_U: list[Uses], *, fixed: bool = False) -> tuple[Tensor | None, int]:
        """What `install` takes, for rows of which those with adapters come first."""
        ranks = {self._slot_of[digest]: packed.rank for digest, packed in self._packed.items()}
        return self._slabs[prefix].gather(uses_U, ranks, fixed=fixed)

    def install(self, prefix: str, gathered: tuple[Tensor | None, int]) -> None:
        """Let the model's layers add this from now on. Costs nothing where it does so already."""
        if self._installed.get(prefix) is not gathered:
            self._layouts[prefix].install(*gathered)
            self._installed[prefix] = gathered
