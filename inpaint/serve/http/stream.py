"""Answers while the client waits: server-sent events, and work that ends when the client goes."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from inpaint.errors import InpaintError
from inpaint.serve.http.errors import Problem, problem_of

T = TypeVar("T")


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


def sse(kind: str, value: Mapping[str, Any]) -> bytes:
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
