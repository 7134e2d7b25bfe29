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


_GAUGES = {
    "queued": ("queued", "Orders that wait for a place in the batch."),
    "running": ("running", "Orders in the batch."),
    "remaining": ("remaining_work", "U-Net rows to do for the orders that are here, weighed by their pixels."),
    "resident": ("resident_adapters", "Adapters in slots."),
}
_COUNTERS = {
    "ticks": ("ticks", "U-Net forwards."),
    "unet_rows": ("rows", "U-Net rows."),
    "loads": ("adapter_loads", "Adapters loaded into slots."),
    "evictions": ("adapter_evictions", "Adapters that made room for others."),
    "painted": ("painted", "Orders painted."),
    "failed": ("failed", "Orders that ended with an error, deadlines among them."),
    "cancelled": ("cancelled", "Orders whose client left."),
    "wasted_steps": ("wasted_steps", "Steps of orders that were given up."),
}
"""Field of `EngineStats` -> the figure's name and description."""


class Growth:
    """Counters whose totals are known from elsewhere: each is told what is new since the last time."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, ...], float] = {}

    def add(self, counter: Counter, total: float, tags: Mapping[str, str]) -> float:
        """Returns what is new."""
        key = (counter.info["name"], *tags.values())
        new = total - self._before.get(key, 0.0)
        self._before[key] = total
        if new > 0:
            counter.inc(new, dict(tags))
        return new


class PainterMetrics:
    """What an engine has done; call `record` every few seconds."""

    def __init__(self, replica: str) -> None:
        self._tags = {"replica": replica}
        self._growth = Growth()
        tags = ("replica",)
        self.gauges = {field: Gauge(f"inpaint_{name}", text, tags) for field, (name, text) in _GAUGES.items()}
        self.counters = {field: Counter(f"inpaint_{name}", text, tags) for field, (name, text) in _COUNTERS.items()}
        self.rows_per_tick = Gauge("inpaint_rows_per_tick", "Mean U-Net rows per tick since the last look.", tags)
        self.seconds = Counter("inpaint_stage_seconds", "Seconds per stage.", (*tags, "stage"))

    def record(self, stats: EngineStats) -> None:
        """Set gauges, and add what has been done since the last call."""
        for field, gauge in self.gauges.items():
            gauge.set(getattr(stats, field), self._tags)
        new = {
            field: self._growth.add(counter, getattr(stats, field), self._tags)
            for field, counter in self.counters.items()
        }
        self.rows_per_tick.set(new["unet_rows"] / new["ticks"] if new["ticks"] else 0.0, self._tags)
        for stage, seconds in stats.seconds.items():
            self._growth.add(self.seconds, seconds, {**self._tags, "stage": stage})


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
        self._growth = Growth()
        self.admitted = Counter("inpaint_work_admitted", "U-Net rows let in.", ("replica",))
        self.refused = Counter("inpaint_work_refused", "U-Net rows told to come back.", ("replica",))
        self.outstanding = Gauge("inpaint_work_outstanding", "U-Net rows let in and not done.", ("replica",))
        self.limit = Gauge("inpaint_work_limit", "U-Net rows that may be outstanding.", ("replica",))
        self.served = Gauge("inpaint_adapters_served", "Adapters of the registry that are served.", ("replica",))
        self.bad = Gauge("inpaint_adapters_refused", "Adapters of the registry that are refused.", ("replica",))

    def look(self, admission: Admission, served: int, refused: int) -> None:
        """Call every few seconds."""
        self._growth.add(self.admitted, admission.admitted, self._tags)
        self._growth.add(self.refused, admission.refused, self._tags)
        self.outstanding.set(admission.outstanding, self._tags)
        self.limit.set(admission.limit, self._tags)
        self.served.set(served, self._tags)
        self.bad.set(refused, self._tags)
