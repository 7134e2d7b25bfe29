"""The service over painters that die, lack an adapter or never answer: every admitted order is answered, and right."""

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from inpaint.errors import InpaintError
from inpaint.serve.adapters.cache import AdapterFiles
from inpaint.serve.admission import Admission, AdmissionSettings, Capacity
from inpaint.serve.deployments.ingress import IngressReplica
from inpaint.serve.dispatcher import MOST_TRIES, Dispatcher, PainterLost
from inpaint.serve.service import (
    AdapterGone,
    AdapterUse,
    Begun,
    DeadlinePassed,
    Overloaded,
    Painted,
    PaintOrder,
    Preview,
    Unpaintable,
)
from tests.unit.paint.examples import request_with
from tests.unit.serve.test_work import BASE

IMAGE = np.zeros((64, 64, 3), dtype=np.uint8)
REQUEST = request_with(image=IMAGE, hole=np.ones((64, 64), dtype=bool), prompt="", seed=0, steps=10, guidance_scale=1)
DONE = Painted(image=IMAGE, kept_pixels_changed=0, steps=10, batch_rows=1, queue_s=0, paint_s=0)


def order(number: int = 0, **changes: object) -> PaintOrder:
    return PaintOrder(id=str(number), request=REQUEST, **changes)


class Painters:
    """One behaviour per call, the last one for all that follow."""

    def __init__(self, *behaviours: Callable[[PaintOrder, tuple[AdapterFiles, ...]], AsyncGenerator]) -> None:
        self.behaviours = list(behaviours)
        self.calls: list[tuple[PaintOrder, tuple[AdapterFiles, ...]]] = []
        self.cancelled = 0

    async def __call__(self, order: PaintOrder, files: tuple[AdapterFiles, ...]) -> AsyncGenerator:
        behaviour = self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]
        self.calls.append((order, files))
        try:
            async for event in behaviour(order, files):
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise


async def paints(order: PaintOrder, files: tuple[AdapterFiles, ...]) -> AsyncGenerator:
    yield Begun()
    for index in range(order.previews):
        yield Preview(index=index, image=IMAGE)
    yield DONE


async def dies(order: PaintOrder, files: tuple[AdapterFiles, ...]) -> AsyncGenerator:
    for index in range(order.previews - 1):
        yield Preview(index=index, image=IMAGE)
    raise PainterLost("killed")


async def dies_at_it(order: PaintOrder, files: tuple[AdapterFiles, ...]) -> AsyncGenerator:
    yield Begun()
    raise PainterLost("killed")


async def falls_silent(order: PaintOrder, files: tuple[AdapterFiles, ...]) -> AsyncGenerator:
    return
    yield


async def hangs(order: PaintOrder, files: tuple[AdapterFiles, ...]) -> AsyncGenerator:
    await asyncio.Event().wait()
    yield


async def lacks_the_adapter(order: PaintOrder, files: tuple[AdapterFiles, ...]) -> AsyncGenerator:
    if not files:
        raise AdapterGone("gone")
    yield DONE


async def refuses(order: PaintOrder, files: tuple[AdapterFiles, ...]) -> AsyncGenerator:
    raise InpaintError("cannot be painted")
    yield


def dispatcher(painters: Painters, queue: float = 100.0) -> tuple[Dispatcher, Admission]:
    cache = SimpleNamespace(files=lambda name, digest: {digest: b""})
    registry = SimpleNamespace(cache=cache, catalogue=dict, refused=dict)
    admission = Admission(AdmissionSettings(queue_per_painter=queue, expected_speed=10))
    admission.capacity = Capacity(painters=2, ingresses=4)
    return Dispatcher(BASE, registry, admission, painters), admission


def collect(service: Dispatcher, *orders: PaintOrder) -> list[tuple[int, Preview | Painted]]:
    async def run() -> list[tuple[int, Preview | Painted]]:
        return [event async for event in service.paint(orders)]

    return asyncio.run(asyncio.wait_for(run(), 60))


def test_every_order_ends_with_its_picture_and_leaves_the_queue() -> None:
    service, admission = dispatcher(Painters(paints))
    events = collect(service, order(0, previews=2), order(1))
    assert sorted(number for number, event in events if isinstance(event, Painted)) == [0, 1]
    assert [e.index for number, e in events if number == 0 and isinstance(e, Preview)] == [0, 1]
    assert admission.outstanding == 0


@pytest.mark.parametrize("failure", [dies, falls_silent])
def test_a_lost_painters_orders_are_painted_by_another_and_no_preview_comes_twice(failure) -> None:
    painters = Painters(failure, failure, paints)
    service, admission = dispatcher(painters)
    events = collect(service, order(previews=3))
    assert [e.index for _, e in events[:-1]] == [0, 1, 2]
    assert isinstance(events[-1][1], Painted)
    assert len(painters.calls) == 3
    assert admission.outstanding == 0


def test_an_order_that_painters_die_of_is_tried_once_more_alone_and_then_refused() -> None:
    painters = Painters(dies_at_it)
    service, admission = dispatcher(painters)
    with pytest.raises(Unpaintable, match="two painters died with it.*killed"):
        collect(service, order())
    assert [order.alone for order, _ in painters.calls] == [False, True]
    assert admission.outstanding == 0


def test_orders_that_had_not_begun_where_a_painter_died_are_painted_beside_others_and_those_that_had_alone() -> None:
    painters = Painters(dies, dies_at_it, dies, paints)
    service, _ = dispatcher(painters)
    assert isinstance(collect(service, order())[-1][1], Painted)
    assert [order.alone for order, _ in painters.calls] == [False, False, True, True]


def test_it_gives_up_after_so_many_lost_painters_and_says_try_again() -> None:
    painters = Painters(dies)
    service, admission = dispatcher(painters)
    with pytest.raises(Overloaded, match="painters were lost"):
        collect(service, order())
    assert len(painters.calls) == MOST_TRIES
    assert admission.outstanding == 0


def test_a_painter_that_lacks_the_version_is_sent_it() -> None:
    painters = Painters(lacks_the_adapter)
    service, _ = dispatcher(painters)
    collect(service, order(adapters=(AdapterUse(name="CDP_COS", digest="d"),)))
    assert [files for _, files in painters.calls] == [(), ({"d": b""},)]


def test_what_no_painter_can_paint_is_not_tried_again_and_ends_the_others() -> None:
    painters = Painters(hangs, refuses)
    service, admission = dispatcher(painters)
    with pytest.raises(InpaintError, match="cannot be painted"):
        collect(service, order(0), order(1))
    assert (len(painters.calls), painters.cancelled) == (2, 1)
    assert admission.outstanding == 0


def test_what_went_wrong_with_the_other_orders_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def refuses_too(order: PaintOrder, files: tuple[AdapterFiles, ...]) -> AsyncGenerator:
        try:
            await asyncio.Event().wait()
        finally:
            raise InpaintError("no room either")
        yield

    async def breaks(order: PaintOrder, files: tuple[AdapterFiles, ...]) -> AsyncGenerator:
        raise ZeroDivisionError("by zero")
        yield

    service, _ = dispatcher(Painters(refuses, refuses_too, breaks, hangs))
    with pytest.raises(InpaintError, match="cannot be painted"):
        collect(service, *(order(number) for number in range(4)))
    told = {record.getMessage(): record.exc_info for record in caplog.records}
    assert set(told) == {"order 1 failed, too: no room either", "order 2 failed, too: by zero"}
    assert told["order 1 failed, too: no room either"] is None
    assert told["order 2 failed, too: by zero"] is not None, "an error that is our own fault comes with its traceback"


def test_an_order_that_fails_is_not_kept_by_its_error() -> None:
    painters = Painters(refuses)
    service, _ = dispatcher(painters)

    async def paint() -> "weakref.ref[object]":
        request = replace(REQUEST)
        with suppress(InpaintError):
            await anext(service.paint([PaintOrder(id="0", request=request)]))
        return weakref.ref(request)

    gc.disable()
    try:
        request = asyncio.run(paint())
        painters.calls.clear()
        assert request() is None
    finally:
        gc.enable()


def test_closing_cancels_all_orders() -> None:
    painters = Painters(paints, hangs)
    service, admission = dispatcher(painters)

    async def leave() -> None:
        async with aclosing(service.paint([order(0), order(1), order(2)])) as events:
            await anext(events)
            await asyncio.sleep(0)

    asyncio.run(leave())
    assert painters.cancelled == 2
    assert admission.outstanding == 0


def test_a_deadline_holds_even_where_no_painter_ever_answers() -> None:
    service, admission = dispatcher(Painters(hangs))
    with pytest.raises(DeadlinePassed):
        collect(service, order(timeout_s=0.01))
    assert admission.outstanding == 0


def test_all_orders_of_a_request_are_let_in_or_none() -> None:
    painters = Painters(hangs)
    service, _ = dispatcher(painters, queue=25)

    async def three_requests() -> None:
        before = [service.paint([order()]) for _ in range(2)]
        waiting = [asyncio.create_task(anext(one)) for one in before]
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(60):
                async for _ in service.paint([order(), order()]):
                    pass
        finally:
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            for one in before:
                await one.aclose()

    with pytest.raises(Overloaded):
        asyncio.run(three_requests())
    assert len(painters.calls) <= 2


def test_it_goes_by_how_many_painters_and_ingresses_there_are() -> None:
    service, admission = dispatcher(Painters(paints))
    assert admission.limit == 50
    admission.capacity = Capacity(painters=0, ingresses=1, healthy=False)
    assert admission.limit == 100
    assert not asyncio.run(service.healthy())


def test_an_ingress_whose_watch_has_ended_is_not_healthy() -> None:
    async def watched() -> None:
        ingress = IngressReplica.__new__(IngressReplica)  # without Serve
        ends, goes_on = asyncio.get_running_loop().create_future(), asyncio.create_task(asyncio.sleep(60))
        ingress._watching = [ends, goes_on]
        await ingress.check_health()
        ends.set_exception(UnicodeError("a name that is none"))
        with pytest.raises(UnicodeError, match="a name"):
            await ingress.check_health()
        goes_on.cancel()

    asyncio.run(watched())


def test_an_order_carries_the_work_that_it_was_admitted_with() -> None:
    painters = Painters(paints)
    service, admission = dispatcher(painters)
    collect(service, order())
    assert painters.calls[0][0].work == admission.admitted == 10
