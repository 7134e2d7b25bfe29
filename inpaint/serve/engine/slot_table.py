"""Which adapter has which slot: lent to the jobs that use it, kept while there is room.

Guaranteed: an adapter in use is never evicted; a resident one costs nothing to use again; the least recently used of
the others makes room. Pure: what lies in a slot is `inpaint.serve.engine.adapter_slots`' business.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class _Lent:
    slot: int
    users: int = 0
    is_loaded: bool = False


class SlotTable:
    """Slots 1 to `slots`, lent to digests; slot 0 is no adapter."""

    def __init__(self, slots: int) -> None:
        self.evictions = 0
        self._free = list(range(slots, 0, -1))
        self._lent: dict[str, _Lent] = {}
        """By digest; in use or loaded, and what was released longest ago comes first."""

    @property
    def resident(self) -> frozenset[str]:
        """Digests that are loaded; from any thread."""
        return frozenset(digest for digest, lent in self._lent.copy().items() if lent.is_loaded)

    @property
    def in_use(self) -> int:
        """How many adapters jobs have now; from any thread."""
        return sum(lent.users > 0 for lent in self._lent.copy().values())

    def acquire(self, digests: Sequence[str]) -> list[str] | None:
        """Lend a slot for each of them, all or none.

        Returns:
            Those that must be loaded for it; None where too many slots are in use: try again later.
        """
        wanted = dict.fromkeys(digests)
        missing = [digest for digest in wanted if digest not in self._lent]
        idle = [digest for digest, lent in self._lent.items() if not lent.users and digest not in wanted]
        if len(missing) > len(self._free) + len(idle):
            return None
        for digest in missing:
            if not self._free:
                self._free.append(self._lent.pop(idle.pop(0)).slot)
                self.evictions += 1
            self._lent[digest] = _Lent(self._free.pop())
        for digest in wanted:
            self._lent[digest].users += 1
        return missing

    def release(self, digests: Sequence[str]) -> None:
        """Give back what `acquire` lent; the adapters stay resident until their slot is needed."""
        for digest in dict.fromkeys(digests):
            lent = self._lent.pop(digest)
            lent.users -= 1
            if lent.users or lent.is_loaded:
                self._lent[digest] = lent
            else:
                self._free.append(lent.slot)

    def loaded(self, digest: str) -> int | None:
        """An adapter has been loaded: the slot to put it in now; None where nobody waits for it any more."""
        lent = self._lent.get(digest)
        if lent is None or lent.is_loaded:
            return None
        lent.is_loaded = True
        return lent.slot

    def is_loaded(self, digests: Sequence[str]) -> bool:
        """Whether all of these lent adapters are."""
        return all(self._lent[digest].is_loaded for digest in digests)

    def slot_of(self, digest: str) -> int:
        """Of a lent adapter."""
        return self._lent[digest].slot
