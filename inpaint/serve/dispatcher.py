"""The service behind the dialects: admission, the registry's answers, and orders that survive a lost painter.

Guarantees: an admitted order is answered or raises; where a painter dies, another one paints the order again, and for
its settings are all decided the picture is the same; no preview comes twice; an order with which two painters died
that had begun it, the second with nothing else, is refused. Closing `paint` cancels all its orders.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace

from inpaint.errors import InpaintError
from inpaint.models.base import BaseInfo
from inpaint.serve.adapters.cache import AdapterFiles
from inpaint.serve.adapters.registry import Registry
from inpaint.serve.admission import Admission, Ticket, work_of
from inpaint.serve.service import (
    AdapterGone,
    Begun,
    DeadlinePassed,
    Overloaded,
    Painted,
    PaintOrder,
    Preview,
    Unpaintable,
)

logger = logging.getLogger(__name__)
MOST_TRIES = 4
"""Painters that an order may lose before its client hears of it."""

PaintOn = Callable[[PaintOrder, tuple[AdapterFiles, ...]], AsyncGenerator[Begun | Preview | Painted, None]]
"""Paints an order on a painter, which may need these adapters. Raises PainterLost, or what the painter raised."""


class PainterLost(InpaintError):
    """The painter died, or cannot be reached: another one can paint the order."""


class Dispatcher:
    """Implements `service.Service` over painters that `call` reaches."""

    def __init__(self, base: BaseInfo, registry: Registry, admission: Admission, call: PaintOn) -> None:
        self.base, self._registry, self._admission, self._call = base, registry, admission, call
        self.catalogue, self.refused = registry.catalogue, registry.refused

    async def healthy(self) -> bool:
        """See `service.Service.healthy`."""
        return self._admission.capacity.healthy

    async def paint(self, orders: Sequence[PaintOrder]) -> AsyncGenerator[tuple[int, Preview | Painted], None]:
        """See `service.Service.paint`."""
        orders = [replace(order, work=work_of(order.request, self.base)) for order in orders]
        ticket = self._admission.admit(sum(order.work for order in orders), orders[0].key)
        events: asyncio.Queue[tuple[int, Preview | Painted] | asyncio.Task[None]] = asyncio.Queue()
        running = {
            asyncio.create_task(self._run(number, order, ticket, events.put_nowait), name=order.id)
            for number, order in enumerate(orders)
        }
        for task in running:
            task.add_done_callback(events.put_nowait)
        event: tuple[int, Preview | Painted] | asyncio.Task[None] | None = None
        try:
            while running:
                event = await events.get()
                if isinstance(event, asyncio.Task):
                    running.remove(event)
                    event.result()  # raises what ended it
                else:
                    yield event
        finally:
            await _cancel(running)
            # What was raised came through this frame: it would keep itself, and the photos.
            del running, task, event

    async def _run(
        self, number: int, order: PaintOrder, ticket: Ticket, emit: Callable[[tuple[int, Preview | Painted]], None]
    ) -> None:
        """One order to its end."""
        done = False
        try:
            async with asyncio.timeout(order.timeout_s), aclosing(self._somewhere(order)) as painting:
                async for event in painting:
                    done = isinstance(event, Painted)
                    emit((number, event))
        except TimeoutError as error:
            raise DeadlinePassed(f"order {order.id} took longer than {order.timeout_s} s") from error
        finally:
            self._admission.leave(ticket, order.work, done=done)

    async def _somewhere(self, order: PaintOrder) -> AsyncGenerator[Preview | Painted, None]:
        """The order's events, from as many painters as it takes."""
        lost, shown = 0, 0
        files: tuple[AdapterFiles, ...] = ()
        painted = False
        while not painted:
            begun = False
            try:
                async with aclosing(self._call(order, files)) as events:
                    async for event in events:
                        painted = isinstance(event, Painted)
                        if isinstance(event, Begun):
                            begun = True
                            continue
                        if isinstance(event, Preview):
                            if event.index < shown:
                                continue
                            shown = event.index + 1
                        yield event
                if not painted:
                    raise PainterLost(f"order {order.id}: the painter ended without a picture")
            except PainterLost as error:
                if painted:
                    return
                if begun and order.alone:
                    message = f"order {order.id}: two painters died with it, the second painted nothing else: {error}"
                    raise Unpaintable(message) from error
                # It may be why: it is tried once more, and costs nobody else anything.
                order = replace(order, alone=begun or order.alone)
                lost += 1
                if lost == MOST_TRIES:
                    raise Overloaded(f"order {order.id}: {lost} painters were lost; the last: {error}", 5.0) from error
                await asyncio.sleep(0.1 * (lost - 1))
            except AdapterGone:
                if files:
                    raise
                cache = self._registry.cache
                files = tuple([await asyncio.to_thread(cache.files, use.name, use.digest) for use in order.adapters])


async def _cancel(tasks: Collection[asyncio.Task[None]]) -> None:
    """End the orders, each named by its task. Those that have failed by now are logged: the client was told of another
    one."""
    for task in tasks:
        task.cancel()
    for task, end in zip(tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
        if isinstance(end, Exception):  # of a cancelled one it is none
            foreseen = isinstance(end, InpaintError)
            logger.warning("order %s failed, too: %s", task.get_name(), end, exc_info=None if foreseen else end)
