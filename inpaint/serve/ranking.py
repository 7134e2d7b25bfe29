"""Which painter an order goes to: the one with the least to do, a missing adapter counted as work.

Pure; the router (`inpaint.serve.deployments.router`) feeds it with what painters publish.
"""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Standing:
    """What is known of a painter."""

    remaining: float = 0.0
    """U-Net rows that it had not done when it last said so."""
    adapters: frozenset[str] = frozenset()
    """Digests that it holds."""

    @classmethod
    def of(cls, published: Mapping[str, Any]) -> "Standing":
        """From what a painter publishes; a painter that has published nothing yet is idle and holds nothing."""
        return cls(float(published.get("remaining", 0.0)), frozenset(published.get("adapters", ())))

    def published(self) -> dict[str, Any]:
        """The form in which it travels through Serve."""
        return {"remaining": self.remaining, "adapters": sorted(self.adapters)}


class Ledger:
    """Work that this router has sent and that is not yet answered, per painter."""

    def __init__(self) -> None:
        self._sent: dict[Hashable, dict[str, list[float]]] = defaultdict(dict)

    def send(self, painter: Hashable, request: str, work: float) -> None:
        """An order of HTTP request `request` goes to `painter`."""
        self._sent[painter].setdefault(request, []).append(work)

    def done(self, painter: Hashable, request: str) -> None:
        """One order of that request is answered; unknown ones are ignored: Serve also reports what was turned down."""
        works = self._sent[painter].get(request)
        if works:
            works.pop()
        if not works:
            self._sent[painter].pop(request, None)

    def outstanding(self, painter: Hashable) -> float:
        """U-Net rows sent to `painter` and not answered."""
        return sum(sum(works) for works in list(self._sent[painter].values()))

    def forget(self, present: set[Hashable]) -> None:
        """Drop painters that are gone."""
        for painter in self._sent.keys() - present:
            del self._sent[painter]


def rank(
    painters: Mapping[Key, Standing], sent: Mapping[Key, float], adapters: Sequence[str], *, load_cost: float
) -> list[Key]:
    """Painters, best first.

    A painter's work is the larger of what it last published (other ingresses' orders included, but up to a period old)
    and what this router has sent it. No painter starves: holding an adapter is worth `load_cost` rows, no more.

    Args:
        sent: U-Net rows that this router has outstanding there.
        adapters: digests that the order needs.
        load_cost: U-Net rows that loading one adapter costs.
    """

    def cost(key: Key) -> float:
        standing = painters[key]
        missing = sum(digest not in standing.adapters for digest in adapters)
        return max(standing.remaining, sent.get(key, 0.0)) + load_cost * missing

    return sorted(painters, key=cost)
