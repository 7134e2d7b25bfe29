"""Serve's request router for painters: the one with the least to do, a missing adapter counted as work.

Requests are taken in the order in which they came (`FIFOMixin`). Without that mixin Ray 2.60 matches a replica to a
request by its HTTP request's id, and the second picture of one HTTP request is never sent.
"""

import random
from collections.abc import Sequence
from typing import Any, TypedDict

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from inpaint.serve.service import PaintOrder

TRIED_ON = "2.60"
"""Ray's version. `PendingRequest.metadata.internal_request_id`, `RunningReplica.routing_stats` and the router's
`on_request_completed` are not promised by it."""


class PainterLoad(TypedDict, total=False):
    """What a painter publishes; plain, for it travels through Serve's controller. One that is new: nothing."""

    remaining: float
    """Work that is here and not done."""
    adapters: list[str]
    """Digests that are resident."""


def cost_of(load: PainterLoad, sent: float, adapters: Sequence[str], load_cost: float) -> float:
    """U-Net rows that come before an order at a painter: the more of what it last published (other ingresses' orders
    included, but up to a period old) and of what this router has sent it; and `load_cost` for each of the order's
    adapters (digests) that it does not hold. So holding adapters is worth that, no more, and no painter starves.
    """
    missing = sum(digest not in load.get("adapters", ()) for digest in adapters)
    return max(load.get("remaining", 0.0), sent) + load_cost * missing


class AdapterRouter(FIFOMixin, RequestRouter):
    """Prefers painters that hold the order's adapters, as long as that is worth the wait."""

    def initialize_state(self, load_cost: float = 30.0) -> None:
        """Called by Serve with `request_router_kwargs`. `load_cost`: U-Net rows that loading one adapter costs."""
        self._load_cost = load_cost
        self._sent: dict[ReplicaID, list[tuple[str, float]]] = {}
        """Of orders that are not yet answered: HTTP request's id and work."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of one replica each, best first; for what is no order, two at random, the less busy one wins."""
        order = _order_of(pending_request)
        if order is None:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        # Shuffled, for the sort keeps the order of equals: idle painters take turns.
        replicas = random.sample(candidate_replicas, len(candidate_replicas))
        self._sent = {replica.replica_id: self._sent.get(replica.replica_id, []) for replica in replicas}
        digests = [use.digest for use in order.adapters]

        def cost(replica: RunningReplica) -> float:
            sent = sum(work for _, work in self._sent[replica.replica_id])
            return cost_of(replica.routing_stats, sent, digests, self._load_cost)

        return [[replica] for replica in sorted(replicas, key=cost)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Called by Serve once a replica has taken the request."""
        order = _order_of(pending_request)
        if order is not None:
            entry = pending_request.metadata.internal_request_id, order.work
            self._sent.setdefault(replica_id, []).append(entry)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called by Serve when a request has ended, however it ended, and also for what was turned down."""
        entries = self._sent.get(replica_id, [])
        entry = next((entry for entry in entries if entry[0] == internal_request_id), None)
        if entry is not None:
            entries.remove(entry)


def _order_of(pending: PendingRequest | None) -> PaintOrder | None:
    first = pending.args[0] if pending is not None and pending.args else None
    return first if isinstance(first, PaintOrder) else None
