"""Which adapter has which slot: lent to the jobs that use it, kept while there is room.

Guaranteed: an adapter in use is never evicted; a resident one costs nothing to use again; the least recently used of
the others makes room. Pure: what lies in a slot is `inpaint.serve.engine.adapter_slots`' business.
"""

from collections import OrderedDict
from collections.abc import Sequence


class SlotTable:
    """Slots 1 to `slots`, lent to digests; slot 0 is no adapter."""

    def __init__(self, slots: int) -> None:
        self.evictions = 0
        self._free = list(range(slots, 0, -1))
        self._slot_of: dict[str, int] = {}
        self._loaded: set[str] = set()
        self._users: dict[str, int] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        """Loaded and unused, least recently used first."""

    @property
    def resident(self) -> frozenset[str]:
        """Digests that are loaded; from any thread."""
        return frozenset(self._loaded.copy())

    @property
    def in_use(self) -> int:
        """How many adapters are lent."""
        return len(self._users)

    def acquire(self, digests: Sequence[str]) -> list[str] | None:
        """Lend a slot for each of them, all or none.

        Returns:
            Those that must be loaded for it; None where too many slots are in use: try again later.
        """
        wanted = list(dict.fromkeys(digests))
        missing = [digest for digest in wanted if digest not in self._slot_of]
        room = len(self._free) + sum(digest not in wanted for digest in self._idle)
        if len(missing) > room:
            return None
        for digest in wanted:
            self._idle.pop(digest, None)
            self._users[digest] = self._users.get(digest, 0) + 1
        for digest in missing:
            self._slot_of[digest] = self._free.pop() if self._free else self._evict()
        return missing

    def _evict(self) -> int:
        digest, _ = self._idle.popitem(last=False)
        assert digest not in self._users
        self.evictions += 1
        self._loaded.remove(digest)
        return self._slot_of.pop(digest)

    def release(self, digests: Sequence[str]) -> None:
        """Give back what `acquire` lent; the adapters stay resident until their slot is needed."""
        for digest in dict.fromkeys(digests):
            self._users[digest] -= 1
            if self._users[digest]:
                continue
            del self._users[digest]
            if digest in self._loaded:
                self._idle[digest] = None
            else:
                self._free.append(self._slot_of.pop(digest))

    def loaded(self, digest: str) -> int | None:
        """An adapter has been loaded: the slot to put it in now; None where nobody waits for it any more."""
        if digest not in self._users or digest in self._loaded:
            return None
        self._loaded.add(digest)
        return self._slot_of[digest]

    def is_loaded(self, digests: Sequence[str]) -> bool:
        """Whether all of them are."""
        return self._loaded.issuperset(digests)

    def slots_of(self, digests: Sequence[str]) -> tuple[int, ...]:
        """Of lent adapters."""
        return tuple(self._slot_of[digest] for digest in digests)
