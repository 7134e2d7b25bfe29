"""Figures for Prometheus, through Ray's metrics agent; docs/serving.md lists them, docs/grafana.json shows them.

All names begin with `inpaint_` (Ray's exporter puts `ray_` before). Ray adds the node and the session; the replica is a
tag of ours, for one process may be one of several painters on a node.
"""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Histogram

from inpaint.serve.admission import Admission
from inpaint.serve.engine.engine import EngineStats
from inpaint.serve.http.record import HttpMetrics, Record

_SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500]


class PainterMetrics:
    """What an engine has done; call `record` every few seconds."""

    def __init__(self, replica: str) -> None:
        tags = ("replica",)
        self._tags = {"replica": replica}
        self._before: dict[tuple[str, str], float] = {}
        self.queued = Gauge("inpaint_queued", "Orders that wait for a place in the batch.", tags)
        self.running = Gauge("inpaint_running", "Orders in the batch.", tags)
        self.remaining = Gauge("inpaint_remaining_work", "U-Net rows to do for the orders that are here.", tags)
        self.resident = Gauge("inpaint_resident_adapters", "Adapters in the bank.", tags)
        self.rows_per_tick = Gauge("inpaint_rows_per_tick", "Mean U-Net rows per tick since the last look.", tags)
        self.ticks = Counter("inpaint_ticks", "U-Net forwards.", tags)
        self.rows = Counter("inpaint_rows", "U-Net rows.", tags)
        self.loads = Counter("inpaint_adapter_loads", "Adapters loaded into the bank.", tags)
        self.evictions = Counter("inpaint_adapter_evictions", "Adapters that made room for others.", tags)
        self.painted = Counter("inpaint_painted", "Orders painted.", tags)
        self.failed = Counter("inpaint_failed", "Orders that ended with an error, deadlines among them.", tags)
        self.cancelled = Counter("inpaint_cancelled", "Orders whose client left.", tags)
        self.wasted = Counter("inpaint_wasted_steps", "Steps of orders that were given up.", tags)
        self.seconds = Counter("inpaint_stage_seconds", "Seconds per stage.", (*tags, "stage"))

    def record(self, stats: EngineStats) -> None:
        """Set gauges, and add what has been done since the last call."""
        self.queued.set(stats.queued, self._tags)
        self.running.set(stats.running, self._tags)
        self.remaining.set(stats.remaining, self._tags)
        self.resident.set(stats.resident, self._tags)
        ticks = self._add(self.ticks, stats.ticks)
        rows = self._add(self.rows, stats.unet_rows)
        self.rows_per_tick.set(rows / ticks if ticks else 0.0, self._tags)
        for counter, total in (
            (self.wasted, stats.wasted_steps),
            (self.loads, stats.loads),
            (self.evictions, stats.evictions),
            (self.painted, stats.painted),
            (self.failed, stats.failed),
            (self.cancelled, stats.cancelled),
        ):
            self._add(counter, total)
        for stage, seconds in stats.seconds.items():
            self._add(self.seconds, seconds, {"stage": stage})

    def _add(self, counter: Counter, total: float, more: Mapping[str, str] | None = None) -> float:
        tags = {**self._tags, **(more or {})}
        key = (counter.info["name"], tags.get("stage", ""))
        new = total - self._before.get(key, 0.0)
        self._before[key] = total
        if new > 0:
            counter.inc(new, tags)
        return new


class RequestMetrics(HttpMetrics):
    """Requests, by what became of them."""

    def __init__(self, replica: str) -> None:
        self._tags = {"replica": replica}
        self._in_flight: dict[str, int] = {}
        self.requests = Counter("inpaint_requests", "Requests answered.", ("dialect", "status", "problem"))
        self.in_flight = Gauge("inpaint_requests_in_flight", "Requests being handled.", ("replica", "dialect"))
        self.latency = Histogram("inpaint_request_seconds", "From first byte to answer.", _SECONDS, ("dialect",))
        self.queue = Histogram("inpaint_queue_seconds", "Waiting for a place in a batch.", _SECONDS, ("dialect",))

    def began(self, dialect: str) -> None:
        """A request came."""
        self._count(dialect, 1)

    def ended(self, record: Record) -> None:
        """It was answered, or its client left (status 499)."""
        self._count(record.dialect, -1)
        tags = {"dialect": record.dialect}
        self.requests.inc(1, {**tags, "status": str(record.status), "problem": record.problem})
        self.latency.observe(record.seconds, tags)
        if record.steps:
            self.queue.observe(record.queue_s, tags)

    def _count(self, dialect: str, change: int) -> None:
        self._in_flight[dialect] = self._in_flight.get(dialect, 0) + change
        self.in_flight.set(self._in_flight[dialect], {**self._tags, "dialect": dialect})


class IngressMetrics(RequestMetrics):
    """As above, and the state of admission and registry."""

    def __init__(self, replica: str) -> None:
        super().__init__(replica)
        self._admitted = self._refused = 0.0
        self.admitted = Counter("inpaint_work_admitted", "U-Net rows let in.", ("replica",))
        self.refused = Counter("inpaint_work_refused", "U-Net rows told to come back.", ("replica",))
        self.outstanding = Gauge("inpaint_work_outstanding", "U-Net rows let in and not done.", ("replica",))
        self.limit = Gauge("inpaint_work_limit", "U-Net rows that may be outstanding.", ("replica",))
        self.served = Gauge("inpaint_adapters_served", "Adapters of the registry that are served.", ("replica",))
        self.bad = Gauge("inpaint_adapters_refused", "Adapters of the registry that are refused.", ("replica",))

    def look(self, admission: Admission, served: int, refused: int) -> None:
        """Call every few seconds."""
        if admission.admitted > self._admitted:
            self.admitted.inc(admission.admitted - self._admitted, self._tags)
        if admission.refused > self._refused:
            self.refused.inc(admission.refused - self._refused, self._tags)
        self._admitted, self._refused = admission.admitted, admission.refused
        self.outstanding.set(admission.outstanding, self._tags)
        self.limit.set(admission.limit, self._tags)
        self.served.set(served, self._tags)
        self.bad.set(refused, self._tags)
