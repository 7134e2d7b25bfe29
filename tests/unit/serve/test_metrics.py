"""Every figure that the dashboard shows and the documentation lists is one that we export."""

import json
import re
from pathlib import Path

import pytest

from inpaint.serve.admission import Admission, AdmissionSettings
from inpaint.serve.deployments.metrics import IngressMetrics, PainterMetrics, RequestMetrics
from inpaint.serve.engine.engine import EngineStats
from inpaint.serve.http.resources import Record
from inpaint.serve.service import Overloaded

DOCS = Path(__file__).resolve().parents[3] / "docs"


def exported() -> set[str]:
    """Names as Prometheus sees them, without `ray_`."""
    held = [*PainterMetrics("r").figures.values(), *IngressMetrics("r").figures.values()]
    held += vars(RequestMetrics("r")).values()
    suffixes = {"Counter": "_total", "Gauge": "", "Histogram": ""}
    return {m.info["name"] + suffixes[type(m).__name__] for m in held if type(m).__name__ in suffixes}


def test_the_dashboard_shows_only_figures_that_there_are() -> None:
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = {name.removesuffix("_bucket") for e in expressions for name in re.findall(r"ray_(inpaint_\w+)", e)}
    assert shown
    assert shown <= exported()


def test_the_documentation_lists_all_figures() -> None:
    text = (DOCS / "serving.md").read_text()
    missing = {name for name in exported() if f"`{name.removeprefix('inpaint_')}`" not in text}
    assert not missing


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], float]:
    """What reaches Ray: (name, tag values...) -> sum of counters, last value of gauges."""
    from ray.util.metrics import Counter, Gauge

    seen: dict[tuple[str, ...], float] = {}

    def inc(self, value=1.0, tags=None):
        key = (self.info["name"], *(tags or {}).values())
        seen[key] = seen.get(key, 0.0) + value

    def put(self, value, tags=None):
        seen[(self.info["name"], *(tags or {}).values())] = value

    monkeypatch.setattr(Counter, "inc", inc)
    monkeypatch.setattr(Gauge, "set", put)
    return seen


def stats(**changes: object) -> EngineStats:
    return EngineStats(**changes)


def test_counters_grow_by_what_is_new(sent: dict[tuple[str, ...], float]) -> None:
    meters = PainterMetrics("r")
    meters.record(stats(ticks=10, rows=40, seconds={"unet": 1.0}))
    meters.record(stats(ticks=14, rows=72, seconds={"unet": 1.5, "decode": 0.25}))
    assert sent["inpaint_ticks", "r"] == 14
    assert sent["inpaint_rows", "r"] == 72
    assert sent["inpaint_rows_per_tick", "r"] == 8
    assert sent["inpaint_stage_seconds", "r", "unet"] == 1.5
    assert sent["inpaint_stage_seconds", "r", "decode"] == 0.25


def test_requests_are_counted_by_what_became_of_them(sent: dict[tuple[str, ...], float]) -> None:
    meters = RequestMetrics("r")
    for _ in range(2):
        meters.began("own")
    meters.ended(Record(id="1", dialect="own", method="POST", path="/paint", status=429, problem="overloaded"))
    assert sent["inpaint_requests_in_flight", "r", "own"] == 1
    assert sent["inpaint_requests", "own", "429", "overloaded"] == 1


def test_refused_work_is_counted(sent: dict[tuple[str, ...], float]) -> None:
    meters, admission = IngressMetrics("r"), Admission(AdmissionSettings(queue_per_painter=10, expected_speed=1))
    for _ in range(2):
        admission.admit(5)
    with pytest.raises(Overloaded):
        admission.admit(5)
    for _ in range(2):
        meters.record(admission, served=3, refused=1)
    assert sent["inpaint_work_admitted", "r"] == 10
    assert sent["inpaint_work_refused", "r"] == 5
    assert (sent["inpaint_adapters_served", "r"], sent["inpaint_adapters_refused", "r"]) == (3, 1)
