"""The measure of work, and who is let in, scaled for and served by whom because of it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inpaint.diffusion.samplers import Sampler
from inpaint.paint.request import Control, PaintRequest
from inpaint.serve.admission import Admission, AdmissionSettings, Capacity, work_of
from inpaint.serve.deployments.router import TRIED_ON, AdapterRouter, PainterLoad, cost_of
from inpaint.serve.deployments.scaling import WORK, ByRemainingWork
from inpaint.serve.dispatcher import Dispatcher
from inpaint.serve.engine.engine import Engine
from inpaint.serve.service import AdapterUse, Overloaded, PaintOrder
from tests.tiny import base_info
from tests.unit.paint.examples import request_with
from tests.unit.serve.engines import GUARD_S, Gate
from tests.unit.serve.engines import running as engine_running

BASE = base_info(size_multiple=16)


def request(*, side: int = 64, hole: tuple[slice, slice] = np.s_[16:48, 16:48], **changes: object) -> PaintRequest:
    area = np.zeros((side, side), dtype=bool)
    area[hole] = True
    settings = {"prompt": "", "seed": 0, "steps": 20, "guidance_scale": 1.0, **changes}
    return request_with(image=np.zeros((side, side, 3), dtype=np.uint8), hole=area, **settings)


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, 20),
        ({"control": Control(image=np.zeros((64, 64, 3), dtype=np.uint8))}, 28),
        ({"steps": 40}, 40),
        ({"guidance_scale": 3.0}, 40),
        ({"strength": 0.5}, 10),
        ({"strength": 0.5, "sampler": Sampler.HEUN}, 19),
        ({"strength": 0.001}, 1),
        ({"size": 128}, 80),
        ({"side": 640}, 20),
        ({"side": 640, "padding": "whole"}, 20),
        ({"side": 640, "padding": 16}, 20),
        # 100 photo pixels and 25 on each side, seen as wide as they are high: painted at 48 x 96.
        ({"side": 640, "hole": np.s_[10:20, 100:300]}, 20 * (48 * 96) / 64**2),
        ({"hole": np.s_[0:0, 0:0]}, 0),
    ],
)
def test_work_counts_steps_guidance_strength_and_pixels(changes: dict[str, object], rows: float) -> None:
    assert work_of(request(**changes), BASE) == rows


def test_a_crop_costs_what_its_own_working_shape_does() -> None:
    # 100 x 400 photo pixels, seen as 200 x 400, for a window is at most twice as long as wide: painted at 48 x 96.
    wide = request(side=640, hole=np.s_[300:400, 100:500], padding=0, size=64)
    assert work_of(wide, BASE) == 20 * (48 * 96) / 64**2


def test_ingress_router_engine_and_autoscaler_count_an_order_alike() -> None:
    router = AdapterRouter.__new__(AdapterRouter)  # without Serve's controller
    router.initialize_state()
    admission = Admission(AdmissionSettings())
    large = PaintOrder(id="1", request=request(side=128, size=128, steps=25))

    async def count(engine: Engine) -> None:
        async def call(order: PaintOrder, files: object) -> AsyncGenerator:
            routed = SimpleNamespace(args=[order], metadata=SimpleNamespace(internal_request_id="r"))
            router.on_request_routed(routed, "painter", None)
            async for event in engine.paint(order):
                yield event

        registry = SimpleNamespace(catalogue=dict, refused=dict)
        painting = Dispatcher(engine.info, registry, admission, call).paint([large])
        async with asyncio.timeout(GUARD_S), aclosing(painting):
            waiting = asyncio.create_task(anext(painting))
            await asyncio.to_thread(gate.arrived.acquire)
            remaining = engine.stats().remaining_work
            assert admission.outstanding == router._sent["painter"][0][1] == remaining == 100
            assert ByRemainingWork(50)(context({"painter": remaining}))[0] == 2
            gate.open()
            await waiting

    with engine_running("toy") as engine:
        gate = Gate(engine)
        gate.shut()
        asyncio.run(count(engine))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def admission(clock: Clock | None = None, **changes: float) -> Admission:
    settings = {"queue_per_painter": 100.0, "expected_speed": 10.0, **changes}
    return Admission(AdmissionSettings(**settings), clock or Clock())


def test_the_queue_is_bounded_by_work_and_says_when_to_come_back() -> None:
    queue = admission()
    first = queue.admit(50)
    queue.admit(50)
    with pytest.raises(Overloaded) as refused:
        queue.admit(50)
    assert refused.value.retry_after_s == 5.0  # 50 rows too many at 10 rows/s
    queue.leave(first, 50, done=True)
    queue.admit(50)


def test_an_order_larger_than_the_queue_is_let_in_and_locks_nobody_out() -> None:
    queue = admission()
    queue.admit(30)
    large = queue.admit(1000)
    assert queue.outstanding == 1030
    queue.admit(20)
    with pytest.raises(Overloaded):
        queue.admit(1)
    for _ in range(10):
        queue.leave(large, 100, done=True)
    queue.admit(50)
    assert queue.outstanding == 100


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 300), st.booleans()), max_size=60))
def test_a_key_has_its_share_of_the_queue_whatever_the_others_do(asked: list[tuple[str, float, bool]]) -> None:
    queue, waiting = admission(), []
    for key, work, leaves in asked:
        if leaves and waiting:
            ticket, rows = waiting.pop(0)
            queue.leave(ticket, rows, done=True)
        keys = {ticket.key for ticket, _ in waiting} | {key}
        held = sum(ticket.scale * rows for ticket, rows in waiting if ticket.key == key)
        try:
            waiting.append((queue.admit(work, key), work))
            assert held + min(work, 50 / len(keys)) <= 100 / len(keys) + 1e-3
        except Overloaded as refused:
            assert held > 0 and held + min(work, 50 / len(keys)) > 100 / len(keys) - 1e-3
            assert 1 <= refused.retry_after_s <= 120
    for ticket, rows in waiting:
        queue.leave(ticket, rows, done=False)
    assert queue.outstanding == pytest.approx(0, abs=1e-3)
    queue.admit(100)
    queue.admit(50)


def test_waiting_time_follows_the_measured_speed() -> None:
    clock = Clock()
    queue = admission(clock)
    for _ in range(8):
        ticket = queue.admit(90)
        clock.now += 1.0
        queue.leave(ticket, 90, done=True)
        clock.now += 50.0  # idle: does not count
    assert queue.speed == pytest.approx(90)


def test_ingresses_share_what_the_painters_may_have_waiting() -> None:
    queue = admission()
    queue.capacity = Capacity(painters=3, ingresses=2)
    assert queue.limit == 150
    queue.capacity = Capacity(painters=0, ingresses=2)  # scaled to zero: the first requests wake one up
    assert queue.limit == 50


def context(remaining: dict[str, float], *, requests: float = 0, least: int = 0, most: int = 8) -> SimpleNamespace:
    return SimpleNamespace(
        aggregated_metrics={WORK: remaining},
        total_num_requests=requests,
        capacity_adjusted_min_replicas=least,
        capacity_adjusted_max_replicas=most,
    )


@pytest.mark.parametrize(
    ("ctx", "painters"),
    [
        (context({}), 0),
        (context({"a": 0.0}), 0),
        (context({"a": 0.0}, least=1), 1),
        (context({"a": 0.0}, requests=3), 1),
        (context({"a": 500.0}), 1),
        (context({"a": 501.0}), 2),
        (context({"a": 900.0, "b": 600.0}), 3),
        (context({"a": 1e6}), 8),
    ],
)
def test_painters_follow_the_work_that_is_waiting_not_the_requests(ctx: SimpleNamespace, painters: int) -> None:
    assert ByRemainingWork(work_per_painter=500)(ctx)[0] == painters


def test_the_painter_that_holds_the_adapter_costs_less_until_waiting_costs_more() -> None:
    cold, warm = PainterLoad(remaining=10), PainterLoad(remaining=30, adapters=["d"])
    assert cost_of(warm, 0.0, ["d"], 30) < cost_of(cold, 0.0, ["d"], 30) < cost_of(warm, 50.0, ["d"], 30)
    assert cost_of(cold, 0.0, [], 30) < cost_of(warm, 0.0, [], 30)


def test_a_new_painter_that_has_published_nothing_is_idle_and_holds_nothing() -> None:
    new, warm = PainterLoad(), PainterLoad(remaining=1, adapters=["d"])
    assert cost_of(new, 0.0, [], 30) == 0.0 < cost_of(warm, 0.0, [], 30)
    assert cost_of(new, 0.0, ["d"], 30) > cost_of(warm, 0.0, ["d"], 30)


def test_the_router_was_tried_on_this_ray() -> None:
    """Where this fails: run tests/jobs/test_serve.py on the new Ray, read what the router says of it, and move on."""
    import ray

    assert ray.__version__.startswith(TRIED_ON)


def test_serve_accepts_policy_and_router_by_name() -> None:
    from ray.serve.config import AutoscalingPolicy, RequestRouterConfig

    policy = AutoscalingPolicy(
        policy_function="inpaint.serve.deployments.scaling:ByRemainingWork", policy_kwargs={"work_per_painter": 7}
    )
    assert policy.get_policy()(**policy.policy_kwargs).work_per_painter == 7
    router = RequestRouterConfig(request_router_class="inpaint.serve.deployments.router.AdapterRouter")
    assert router.get_request_router_class().__name__ == "AdapterRouter"


def test_the_router_ranks_replicas_by_what_they_publish() -> None:
    router = AdapterRouter.__new__(AdapterRouter)  # without Serve's controller
    router.initialize_state(load_cost=30)
    replicas = [
        SimpleNamespace(replica_id=name, routing_stats=PainterLoad(remaining=work, adapters=held))
        for name, work, held in (("busy", 500, ["d"]), ("warm", 20, ["d"]), ("cold", 0, []))
    ]
    order = PaintOrder(id="1", request=request(), adapters=(AdapterUse(name="CDP_COS", digest="d"),), work=20.0)
    pending = SimpleNamespace(args=[order, ()], metadata=SimpleNamespace(internal_request_id="r"))

    def choose() -> list[str]:
        return [r.replica_id for (r,) in asyncio.run(router.choose_replicas(replicas, pending))]

    assert choose() == ["warm", "cold", "busy"]
    for _ in range(3):
        router.on_request_routed(pending, "warm", None)
    assert choose() == ["cold", "warm", "busy"], "what was sent since the last report counts"
    router.on_request_completed("warm", "turned down")
    assert choose() == ["cold", "warm", "busy"]
    for _ in range(3):
        router.on_request_completed("warm", "r")
    assert choose()[0] == "warm"
    for _ in range(3):
        router.on_request_routed(pending, "warm", None)
    warm = replicas.pop(1)
    assert choose() == ["cold", "busy"]
    replicas.append(warm)
    assert choose()[0] == "warm", "what was sent to a painter that went is forgotten"
    (pair,) = asyncio.run(router.choose_replicas(replicas, None))
    assert len(pair) == 2
