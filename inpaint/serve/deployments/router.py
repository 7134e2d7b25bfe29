"""Serve's request router for painters: the one with the least to do, a missing adapter counted as work.

Requests are taken in the order in which they came (`FIFOMixin`). Without that mixin Ray 2.60 matches a replica to a
request by its HTTP request's id, and the second picture of one HTTP request is never sent.
"""

import random
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from inpaint.serve.service import PaintOrder

TRIED_ON = "2.60"
"""Ray's version. `PendingRequest.metadata.internal_request_id`, `RunningReplica.routing_stats` and the router's
`on_request_completed` are not promised by it."""

Key = TypeVar("Key", bound=Hashable)


class PainterLoad(TypedDict, total=False):
    """What a painter publishes; plain, for it travels through Serve's controller. One that is new: nothing."""

    remaining: float
    """Work that is here and not done."""
    adapters: list[str]
    """Digests that are resident."""


class SentWork:
    """Work that this router has sent and that is not yet answered, per painter."""

    def __init__(self) -> None:
        self._sent: dict[Hashable, list[tuple[str, float]]] = defaultdict(list)

    def send(self, painter: Hashable, request: str, work: float) -> None:
        """An order of HTTP request `request` goes to `painter`."""
        self._sent[painter].append((request, work))

    def done(self, painter: Hashable, request: str) -> None:
        """One order of that request is answered; unknown ones are ignored: Serve also reports what was turned down."""
        entry = next((entry for entry in self._sent[painter] if entry[0] == request), None)
        if entry is not None:
            self._sent[painter].remove(entry)

    def outstanding(self, painter: Hashable) -> float:
        """Sent to `painter` and not answered."""
        return sum(work for _, work in self._sent[painter].copy())

    def forget(self, present: set[Hashable]) -> None:
        """Drop painters that are gone."""
        for painter in self._sent.keys() - present:
            del self._sent[painter]


def rank(
    painters: Mapping[Key, PainterLoad], sent: Mapping[Key, float], adapters: Sequence[str], *, load_cost: float
) -> list[Key]:
    """Painters, best first.

    A painter's work is the larger of what it last published (other ingresses' orders included, but up to a period old)
    and what this router has sent it. No painter starves: holding an adapter is worth `load_cost` rows, no more.

    Args:
        sent: work that this router has outstanding there.
        adapters: digests that the order needs.
        load_cost: U-Net rows that loading one adapter costs.
    """

    def cost(key: Key) -> float:
        load = painters[key]
        missing = sum(digest not in load.get("adapters", ()) for digest in adapters)
        return max(load.get("remaining", 0.0), sent.get(key, 0.0)) + load_cost * missing

    return sorted(painters, key=cost)


class AdapterRouter(FIFOMixin, RequestRouter):
    """Prefers painters that hold the order's adapters, as long as that is worth the wait."""

    def initialize_state(self, load_cost: float = 30.0) -> None:
        """Called by Serve with `request_router_kwargs`.

        Args:
            load_cost: U-Net rows that loading one adapter costs.
        """
        self._load_cost = load_cost
        self._sent = SentWork()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of one replica each, best first; for what is no order, two at random, the less busy one wins."""
        order = _order_of(pending_request)
        if order is None:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        # Shuffled, for the sort keeps the order of equals: idle painters take turns.
        replicas = {r.replica_id: r for r in random.sample(candidate_replicas, len(candidate_replicas))}
        self._sent.forget(set(replicas))
        painters = {key: replica.routing_stats for key, replica in replicas.items()}
        sent = {key: self._sent.outstanding(key) for key in replicas}
        digests = [use.digest for use in order.adapters]
        return [[replicas[key]] for key in rank(painters, sent, digests, load_cost=self._load_cost)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Called by Serve once a replica has taken the request."""
        order = _order_of(pending_request)
        if order is not None:
            self._sent.send(replica_id, pending_request.metadata.internal_request_id, order.work)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called by Serve when a request has ended, however it ended."""
        self._sent.done(replica_id, internal_request_id)


def _order_of(pending: PendingRequest | None) -> PaintOrder | None:
    first = pending.args[0] if pending is not None and pending.args else None
    return first if isinstance(first, PaintOrder) else None
