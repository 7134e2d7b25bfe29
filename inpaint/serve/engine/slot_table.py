"""Which adapter has which slot: lent to the jobs that use it, kept while there is room.

Guaranteed: an adapter in use is never evicted; a resident one costs nothing to use again; the least recently used of
the others makes room. Pure: what lies in a slot is `inpaint.serve.engine.adapter_slots`' business.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(eq=False)
class Loan:
    """A slot lent for an adapter. What comes of its load concerns the jobs that have this loan, and no later one's."""

    digest: str
    slot: int
    users: int = 0
    """Jobs that have it now, from any thread. Without any it is over, unless its adapter is loaded."""
    is_loaded: bool = False


class SlotTable:
    """Slots 1 to `slots`, lent to digests; slot 0 is no adapter."""

    def __init__(self, slots: int) -> None:
        self.evictions = 0
        self._free = list(range(slots, 0, -1))
        self._loans: dict[str, Loan] = {}
        """By digest; in use or loaded, and what was released longest ago comes first."""

    @property
    def resident(self) -> frozenset[str]:
        """Digests that are loaded; from any thread."""
        return frozenset(digest for digest, loan in self._loans.copy().items() if loan.is_loaded)

    def acquire(self, digests: Sequence[str]) -> list[Loan] | None:
        """Lend a slot for each of them, all or none: None where too many slots are in use, try again later.

        An adapter that is not loaded and has no other user must now be loaded.
        """
        wanted = dict.fromkeys(digests)
        missing = [digest for digest in wanted if digest not in self._loans]
        idle = [digest for digest, loan in self._loans.items() if not loan.users and digest not in wanted]
        if len(missing) > len(self._free) + len(idle):
            return None
        for digest in missing:
            if not self._free:
                self._free.append(self._loans.pop(idle.pop(0)).slot)
                self.evictions += 1
            self._loans[digest] = Loan(digest, self._free.pop())
        loans = [self._loans[digest] for digest in wanted]
        for loan in loans:
            loan.users += 1
        return loans

    def release(self, loans: Iterable[Loan]) -> None:
        """Give back what `acquire` lent; the adapters stay resident until their slot is needed."""
        for loan in loans:
            del self._loans[loan.digest]
            loan.users -= 1
            if loan.users or loan.is_loaded:
                self._loans[loan.digest] = loan
            else:
                self._free.append(loan.slot)
