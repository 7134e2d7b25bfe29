"""Where dialects hand wishes over and get pictures: bodies in, orders to the service, files out.

Guaranteed: decoding and encoding never run on the event loop; when the client goes, the service's generator is closed
at once; all of a request's painting happens in one task, so that a service may use task-bound contexts.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar, TypeVarTuple

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from inpaint.errors import InpaintError
from inpaint.serve.service import Painted, PaintOrder, Preview, Service
from inpaint.serve.wire.body import read_body
from inpaint.serve.wire.problems import Problem, overloaded, problem_of
from inpaint.serve.wire.receipt import encode, receipt_of
from inpaint.serve.wire.record import Record
from inpaint.serve.wire.settings import BYTES_PER_PIXEL, HttpSettings
from inpaint.serve.wire.wish import Wish

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One picture as it goes out; a preview where `painted` is None."""

    number: int
    """Which of the request's pictures."""
    index: int
    """Which preview of that picture."""
    seed: int
    data: bytes
    painted: Painted | None


class Counter:
    """What all requests share, whatever paints them: the limits, threads, and the memory that they hold."""

    def __init__(self, settings: HttpSettings) -> None:
        self.settings = settings
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="pictures")
        self._held = 0

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def offload(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Run `work` in a thread; at most `threads` run at once."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def hold(self, record: Record, count: int) -> None:
        """Count bytes that the request keeps in memory, until `release`. Raises Problem 429 where all hold too many."""
        most = self.settings.max_held_bytes
        if self._held + count > most:
            raise overloaded(f"requests hold {self._held:,} bytes in memory, the limit is {most:,}", 2.0)
        self._held += count
        record.held += count

    def release(self, record: Record) -> None:
        """The request holds nothing any more."""
        self._held -= record.held
        record.held = 0

    async def understand(self, request: Request, read: Callable[[bytes, str], T]) -> T:
        """Read the body and let the dialect's `read(body, content type)` make a wish of it, in a thread."""
        record = record_of(request)
        declared = request.headers.get("content-length")
        coding = request.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            message = "content-encoding: bodies are read as they are; send it uncompressed"
            raise Problem(message, status=415, code="unsupported_encoding", field="content-encoding")
        body = await read_body(self._counted(request, record), declared, self.settings)
        return await self.offload(read, body, request.headers.get("content-type", ""))

    async def _counted(self, request: Request, record: Record) -> AsyncGenerator[bytes, None]:
        async for chunk in request.stream():
            record.bytes_in += len(chunk)
            self.hold(record, len(chunk))
            yield chunk


class Desk(Counter):
    """A counter with the service behind it."""

    def __init__(self, service: Service, settings: HttpSettings) -> None:
        super().__init__(settings)
        self.service = service

    async def paint(self, request: Request, wish: Wish) -> list[Sent]:
        """All pictures of a wish. Raises ClientDisconnect where the client has gone."""

        async def collect() -> list[Sent]:
            async with aclosing(self.sent(request, wish)) as pictures:
                return sorted([p async for p in pictures if p.painted is not None], key=lambda sent: sent.number)

        return await until_gone(request.receive, collect())

    async def sent(self, request: Request, wish: Wish) -> AsyncGenerator[Sent, None]:
        """Previews and pictures as they come, encoded; each number ends with its picture."""
        record, settings, base = record_of(request), self.settings, self.service.base
        orders = wish.orders(f"{record.id}-{secrets.token_hex(4)}")  # clients may give an id twice
        record.model, record.n, record.pixels = wish.model, wish.n, wish.request.hole.size
        self.hold(record, BYTES_PER_PIXEL * record.pixels * wish.n)
        unpainted = set(range(wish.n))
        async with aclosing(self._events(orders)) as events:
            async for number, event in events:
                order = orders[number]
                painted = event if isinstance(event, Painted) else None
                index = event.index if isinstance(event, Preview) else 0
                if painted is not None:
                    unpainted.remove(number)
                    _check(painted, order)
                    record.steps += painted.steps
                    record.queue_s = max(record.queue_s, painted.queue_s)
                    record.paint_s = max(record.paint_s, painted.paint_s)
                seed = order.request.seed
                receipt, level = receipt_of(order, base), settings.png_compress_level
                infotext = wish.infotexts(seed) if wish.infotexts else ""
                data = await self.offload(encode, event.image, wish.encoding, receipt, level, infotext)
                yield Sent(number=number, index=index, seed=seed, data=data, painted=painted)
        assert not unpainted, f"the service ended without pictures {sorted(unpainted)} of {record.id}"

    async def _events(self, orders: Sequence[PaintOrder]) -> AsyncGenerator[tuple[int, Preview | Painted], None]:
        if orders[0].request.hole.any():
            async with aclosing(self.service.paint(orders)) as events:
                async for event in events:
                    yield event
            return
        for number, order in enumerate(orders):
            image = order.request.image
            yield (
                number,
                Painted(image=image, kept_pixels_changed=0, steps=0, batch_rows=0.0, queue_s=0.0, paint_s=0.0),
            )


class EventStream(Response):
    """Server-sent events. Nothing is sent before the first one: whatever goes wrong until then is a status."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str], failed: Callable[[Problem], bytes]
    ) -> None:
        """Args: failed: how a problem is told that comes up after the first event."""
        super().__init__(headers={**headers, "cache-control": "no-store"}, media_type="text/event-stream")
        # Its length is not known.
        del self.headers["content-length"]
        self._events = events
        self._failed = failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_gone(receive, self._pump(send))

    async def _pump(self, send: Send) -> None:
        started = False
        async with aclosing(self._events) as events:
            try:
                async for event in events:
                    if not started:
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                        started = True
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            except InpaintError as error:
                if not started:
                    raise
                last = self._failed(problem_of(error))
                await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def sse(kind: str, value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(value)}\n\n".encode()


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The work's result. Cancels it, and waits for its end, where the client goes or this task is cancelled.

    Raises:
        ClientDisconnect: the client went first.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            watching.result()  # raises where the server failed, not the client
            raise ClientDisconnect()
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def record_of(request: Request) -> Record:
    """The record that the door opened for the request."""
    record = request.state.record
    assert isinstance(record, Record)
    return record


def headers_of(wish: Wish, base_revision: str, sent: Sequence[Sent]) -> dict[str, str]:
    """Headers of every answer with pictures; kept pixels are counted before the picture was encoded."""
    changed = sum(one.painted.kept_pixels_changed for one in sent if one.painted is not None)
    headers = {
        "x-kept-pixels-changed": str(changed),
        "x-seed": str(wish.request.seed),
        "x-base-revision": base_revision,
        "x-adapter-digest": ",".join(use.digest for use in wish.adapters),
    }
    if wish.warnings:
        headers["x-warnings"] = "; ".join(wish.warnings).encode("ascii", "replace").decode()[:1000]
    return headers


def _check(painted: Painted, order: PaintOrder) -> None:
    if painted.kept_pixels_changed:
        raise AssertionError(f"order {order.id}: {painted.kept_pixels_changed} kept pixels were changed")
    if painted.image.shape != order.request.image.shape:
        raise AssertionError(f"order {order.id}: painted {painted.image.shape}, asked {order.request.image.shape}")
