"""Figures for Prometheus, through Ray's metrics agent; docs/serving.md lists them, docs/grafana.json shows them.

All names begin with `inpaint_` (Ray's exporter puts `ray_` before). Ray adds the node and the session; the replica is a
tag of ours, for one process may be one of several painters on a node.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from ray.util.metrics import Counter, Gauge, Histogram

from inpaint.serve.admission import Admission
from inpaint.serve.engine.engine import EngineStats
from inpaint.serve.http.resources import HttpMetrics, Record

_SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500]


class Figures:
    """Of a replica; their values are known from elsewhere, so a counter is told what is new since the last time."""

    table: ClassVar[Mapping[str, tuple[Any, ...]]]
    """Name -> kind, description, tags beside the replica."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self.figures = {
            name: kind(f"inpaint_{name}", text, ("replica", *tags)) for name, (kind, text, *tags) in self.table.items()
        }
        self._totals: dict[tuple[str, ...], float] = {}

    def update(self, values: Mapping[str, float], **tags: str) -> dict[str, float]:
        """Set figures to what they are now. Returns how much the counters among them have grown."""
        tags = {"replica": self._replica, **tags}
        grown = {}
        for name in values.keys() & self.figures.keys():
            figure, key = self.figures[name], (name, *tags.values())
            if isinstance(figure, Gauge):
                figure.set(values[name], tags)
                continue
            grown[name] = values[name] - self._totals.get(key, 0.0)
            self._totals[key] = values[name]
            if grown[name] > 0:
                figure.inc(grown[name], tags)
        return grown


class PainterMetrics(Figures):
    """What an engine has done."""

    table: ClassVar = {
        "queued": (Gauge, "Orders that wait for a place in the batch."),
        "running": (Gauge, "Orders in the batch."),
        "remaining_work": (Gauge, "U-Net rows to do for the orders that are here, weighed by their pixels."),
        "resident_adapters": (Gauge, "Adapters in slots."),
        "rows_per_tick": (Gauge, "Mean U-Net rows per tick since the last look."),
        "ticks": (Counter, "U-Net forwards."),
        "rows": (Counter, "U-Net rows."),
        "adapter_loads": (Counter, "Adapters loaded into slots."),
        "adapter_evictions": (Counter, "Adapters that made room for others."),
        "painted": (Counter, "Orders painted."),
        "failed": (Counter, "Orders that ended with an error, deadlines among them."),
        "cancelled": (Counter, "Orders whose client left."),
        "wasted_steps": (Counter, "Steps of orders that were given up."),
        "stage_seconds": (Counter, "Seconds per stage.", "stage"),
    }

    def record(self, stats: EngineStats) -> None:
        """Call every few seconds."""
        grown = self.update(vars(stats))
        self.update({"rows_per_tick": grown["rows"] / grown["ticks"] if grown["ticks"] else 0.0})
        for stage, seconds in stats.seconds.items():
            self.update({"stage_seconds": seconds}, stage=stage)


class RequestMetrics(HttpMetrics):
    """Requests, by what became of them."""

    def __init__(self, replica: str) -> None:
        self._tags = {"replica": replica}
        self._in_flight: dict[str, int] = {}
        self.handled = 0
        """Requests so far."""
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
        self.handled += 1
        tags = {"dialect": record.dialect}
        self.requests.inc(1, {**tags, "status": str(record.status), "problem": record.problem})
        self.latency.observe(record.seconds, tags)
        if record.steps:
            self.queue.observe(record.queue_s, tags)

    @property
    def being_handled(self) -> int:
        """Requests now."""
        return sum(self._in_flight.values())

    def _count(self, dialect: str, change: int) -> None:
        self._in_flight[dialect] = self._in_flight.get(dialect, 0) + change
        self.in_flight.set(self._in_flight[dialect], {**self._tags, "dialect": dialect})


class IngressMetrics(Figures):
    """The state of admission and registry."""

    table: ClassVar = {
        "work_outstanding": (Gauge, "U-Net rows let in and not done."),
        "work_limit": (Gauge, "U-Net rows that may be outstanding."),
        "work_admitted": (Counter, "U-Net rows let in."),
        "work_refused": (Counter, "U-Net rows told to come back."),
        "adapters_served": (Gauge, "Adapters of the registry that are served."),
        "adapters_refused": (Gauge, "Adapters of the registry that are refused."),
    }

    def record(self, admission: Admission, served: int, refused: int) -> None:
        """Call every few seconds."""
        work = {f"work_{name}": getattr(admission, name) for name in ("outstanding", "limit", "admitted", "refused")}
        self.update({**work, "adapters_served": served, "adapters_refused": refused})
