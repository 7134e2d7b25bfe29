"""The service behind the dialects: admission, the registry's answers, and orders that survive a lost painter.

Guarantees: an admitted order is answered or raises; where a painter dies, another one paints the order again, and for
its settings are all decided the picture is the same; no preview comes twice. Closing `paint` cancels all its orders.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from inpaint.errors import InpaintError
from inpaint.models.info import BaseInfo
from inpaint.serve.adapters.cache import AdapterFiles
from inpaint.serve.adapters.registry import Registry
from inpaint.serve.admission import Admission
from inpaint.serve.service import (
    AdapterGone,
    DeadlinePassed,
    Overloaded,
    Painted,
    PaintOrder,
    Preview,
    ServedAdapter,
)
from inpaint.serve.work import work_of

MOST_TRIES = 4
"""Painters that an order may lose before its client hears of it."""

Call = Callable[[PaintOrder, float, tuple[AdapterFiles, ...]], AsyncGenerator[Preview | Painted, None]]
"""Paints an order of so much work on a painter. Raises ReplicaLost, or what the painter raised."""


class ReplicaLost(InpaintError):
    """The painter died, or cannot be reached: another one can paint the order."""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What Serve says of itself."""

    painters: int = 0
    """Running now."""
    ingresses: int = 1
    healthy: bool = True
    """Whether painters run, or could be started."""


class Dispatcher:
    """Implements `service.Service` over painters that `call` reaches."""

    def __init__(
        self,
        base: BaseInfo,
        registry: Registry,
        admission: Admission,
        call: Call,
        look: Callable[[], Awaitable[Capacity]],
    ) -> None:
        self._base = base
        self._registry = registry
        self._admission = admission
        self._call = call
        self._look = look

    @property
    def base(self) -> BaseInfo:
        """The base that all orders are painted with."""
        return self._base

    def catalogue(self) -> Mapping[str, ServedAdapter]:
        """Adapter name -> what is served under it now."""
        return self._registry.catalogue()

    def refused(self) -> Mapping[str, str]:
        """Adapter name -> why it is not served."""
        return self._registry.refused()

    async def healthy(self) -> bool:
        """Whether a painter does, or can be started to do, real work."""
        return (await self._look()).healthy

    async def watch(self) -> None:
        """Let admission know how many painters there are."""
        state = await self._look()
        self._admission.painters, self._admission.ingresses = state.painters, state.ingresses

    async def paint(self, orders: Sequence[PaintOrder]) -> AsyncGenerator[tuple[int, Preview | Painted], None]:
        """See `service.Service.paint`."""
        works = [work_of(order.request, self._base) for order in orders]
        self._admission.admit(sum(works))
        events: asyncio.Queue[tuple[int, Preview | Painted] | asyncio.Task[None]] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._run(number, order, work, events.put_nowait))
            for number, (order, work) in enumerate(zip(orders, works, strict=True))
        ]
        for task in tasks:
            task.add_done_callback(events.put_nowait)
        left = len(tasks)
        try:
            while left:
                event = await events.get()
                if isinstance(event, asyncio.Task):
                    left -= 1
                    event.result()  # raises what ended it
                else:
                    yield event
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(
        self, number: int, order: PaintOrder, work: float, emit: Callable[[tuple[int, Preview | Painted]], None]
    ) -> None:
        """One order to its end."""
        done = False
        try:
            async with asyncio.timeout(order.timeout_s), aclosing(self._somewhere(order, work)) as painting:
                async for event in painting:
                    done = done or isinstance(event, Painted)
                    emit((number, event))
        except TimeoutError as error:
            raise DeadlinePassed(f"order {order.id} took longer than {order.timeout_s:g} s") from error
        finally:
            self._admission.leave(work, done=done)

    async def _somewhere(self, order: PaintOrder, work: float) -> AsyncGenerator[Preview | Painted, None]:
        """The order's events, from as many painters as it takes."""
        begun = time.monotonic()
        next_preview, lost = 0, 0
        parcels: tuple[AdapterFiles, ...] = ()
        painted = False
        while not painted:
            try:
                async with aclosing(self._call(order, work, parcels)) as events:
                    async for event in events:
                        if isinstance(event, Painted):
                            painted = True
                        elif event.index >= next_preview:
                            next_preview = event.index + 1
                        else:
                            continue
                        yield event
                if not painted:
                    raise ReplicaLost(f"order {order.id}: the painter ended without a picture")
            except ReplicaLost as error:
                if painted:
                    return
                lost += 1
                if lost == MOST_TRIES:
                    raise Overloaded(f"order {order.id}: {lost} painters were lost; the last: {error}", 5.0) from error
                await asyncio.sleep(0.1 * (lost - 1))
            except AdapterGone:
                if parcels:
                    raise
                parcels = await asyncio.to_thread(self._parcels, order)
            if order.timeout_s is not None:
                order = replace(order, timeout_s=max(0.001, order.timeout_s - (time.monotonic() - begun)))
                begun = time.monotonic()

    def _parcels(self, order: PaintOrder) -> tuple[AdapterFiles, ...]:
        return tuple(self._registry.cache.files(use.name, use.digest) for use in order.adapters)
