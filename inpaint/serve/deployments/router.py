"""Serve's request router for painters: residency of the adapters against remaining work (`inpaint.serve.ranking`).

Requests are taken in the order in which they came (`FIFOMixin`). Without that mixin Ray 2.60 matches a replica to a
request by its HTTP request's id, and the second picture of one HTTP request is never sent.
"""

import random
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from inpaint.serve.ranking import Ledger, Standing, rank
from inpaint.serve.service import PaintOrder


class AdapterRouter(FIFOMixin, RequestRouter):
    """Prefers painters that hold the order's adapters, as long as that is worth the wait."""

    def initialize_state(self, load_cost: float = 30.0) -> None:
        """Called by Serve with `request_router_kwargs`.

        Args:
            load_cost: U-Net rows that loading one adapter costs.
        """
        self._load_cost = load_cost
        self._ledger = Ledger()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of one replica each, best first; for what is no order, two at random, the less busy one wins."""
        order = _order(pending_request)
        if order is None:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        # Shuffled, for the sort keeps the order of equals: idle painters take turns.
        replicas = {r.replica_id: r for r in random.sample(candidate_replicas, len(candidate_replicas))}
        self._ledger.forget(set(replicas))
        painters = {key: Standing.of(replica.routing_stats) for key, replica in replicas.items()}
        sent = {key: self._ledger.outstanding(key) for key in replicas}
        digests = [use.digest for use in order.adapters]
        return [[replicas[key]] for key in rank(painters, sent, digests, load_cost=self._load_cost)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Called by Serve once a replica has taken the request."""
        if _order(pending_request) is not None:
            work = float(pending_request.args[1])
            self._ledger.send(replica_id, pending_request.metadata.internal_request_id, work)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called by Serve when a request has ended, however it ended."""
        self._ledger.done(replica_id, internal_request_id)


def _order(pending: PendingRequest | None) -> PaintOrder | None:
    if pending is None or len(pending.args) < 2:
        return None
    first = pending.args[0]
    return first if isinstance(first, PaintOrder) else None
