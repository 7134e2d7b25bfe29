"""One path of an application, whatever it paints: read (bytes -> a checked call), submit, encode, answer.

An application says its fields (`schema.Fields`), what they mean (`read`), what is done (`submit`), how a result is
written (`encode`) and how all of them are answered (`answer`). The rest is here.

Guaranteed: `read`, `encode` and `answer` run in a thread, never on the event loop; `submit` runs in one task from
beginning to end, so that it may use task-bound contexts, and is closed at once when the client goes; what a request
keeps in memory is counted until its answer is out.
"""

import asyncio
import base64
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from inpaint.errors import InpaintError
from inpaint.serve.http.body import FORM, JSON, parse_body
from inpaint.serve.http.errors import Problem, problem_details, problem_of
from inpaint.serve.http.limits import BYTES_PER_PIXEL, HttpSettings
from inpaint.serve.http.receipt import Encoding
from inpaint.serve.http.record import Record, record_of
from inpaint.serve.http.resources import Resources
from inpaint.serve.http.schema import FieldsT, Limits, file_fields, read_fields, request_body

RequestT = TypeVar("RequestT")


@dataclass(frozen=True, kw_only=True, eq=False)
class Call(Generic[RequestT]):
    """A checked request; applications may add to it."""

    request: RequestT
    """What shall be done."""
    encoding: Encoding = Encoding()
    """How its pictures are written."""
    model: str
    """As the client named it, for the log."""
    n: int = 1
    """Pictures asked for."""
    pixels: int = 0
    """Of the photo: what the request keeps in memory is counted by them."""
    stream: bool = False
    """Whether results are sent as events while others are still awaited."""
    warnings: tuple[str, ...] = ()
    """What was accepted without effect; told in `x-warnings`."""


CallT = TypeVar("CallT", bound=Call[Any])
ResultT = TypeVar("ResultT")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Encoded(Generic[ResultT]):
    """A result and its file."""

    result: ResultT
    data: bytes

    @property
    def base64(self) -> str:
        return base64.b64encode(self.data).decode("ascii")


class Endpoint(ABC, Generic[FieldsT, CallT, ResultT]):
    """`POST path`. Each subclass's docstring begins with its line in /docs."""

    path: ClassVar[str]
    fields: type[FieldsT]
    media_types: ClassVar[tuple[str, ...]] = (FORM, JSON)
    answers: ClassVar[tuple[str, ...]] = ("image/png", "image/jpeg", "image/webp")
    """Content types of answers, for /docs."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources

    @property
    def settings(self) -> HttpSettings:
        return self.resources.settings

    @property
    def limits(self) -> Limits:
        """What bounds of the fields may name."""
        return vars(self.settings)

    @abstractmethod
    def read(self, fields: FieldsT) -> CallT:
        """Check what the fields mean together, and decode their pictures. Raises InpaintError."""

    @abstractmethod
    def submit(self, call: CallT, record: Record) -> AsyncGenerator[ResultT, None]:
        """Do it, and give results as they come; for the record, say what they took. Raises InpaintError."""

    @abstractmethod
    def encode(self, call: CallT, result: ResultT) -> bytes:
        """A result's file (`receipt.encode` for a picture)."""

    @abstractmethod
    def answer(self, call: CallT, results: Sequence[Encoded[ResultT]]) -> Response:
        """The answer with all results, in the order in which they came."""

    def headers(self, call: CallT) -> dict[str, str]:
        """Of every answer to a call, a stream's among them."""
        return {}

    def event(self, call: CallT, result: Encoded[ResultT]) -> bytes:
        """A result as a server-sent event, where the call asked for a stream."""
        raise AssertionError(f"{self.path} has no stream")

    def failed(self, problem: Problem) -> bytes:
        """The last event of a stream that ends early."""
        return sse("error", problem_details(problem))

    async def handle(self, request: Request) -> Response:
        """A request's way through all of it. Raises ClientDisconnect where the client has gone."""
        record = record_of(request)
        call = await self.resources.read(request, self._read)
        record.model, record.n, record.pixels = call.model, call.n, call.pixels
        self.resources.hold(record, BYTES_PER_PIXEL * call.n * call.pixels)
        headers = self.headers(call)
        if call.warnings:
            headers["x-warnings"] = "; ".join(call.warnings).encode("ascii", "replace").decode()[:1000]
        if call.stream:
            return EventStream(self._events(call, record), headers, self.failed)
        results = await until_gone(request.receive, self._collect(call, record))
        response = await self.resources.offload(self.answer, call, results)
        response.headers.update(headers)
        return response

    def _read(self, body: bytes, content_type: str) -> CallT:
        values = parse_body(body, content_type, self.media_types, file_fields(self.fields), self.settings)
        return self.read(read_fields(self.fields, values, self.limits))

    async def _encoded(self, call: CallT, record: Record) -> AsyncGenerator[Encoded[ResultT], None]:
        async with aclosing(self.submit(call, record)) as results:
            async for result in results:
                yield Encoded(result, await self.resources.offload(self.encode, call, result))

    async def _collect(self, call: CallT, record: Record) -> list[Encoded[ResultT]]:
        async with aclosing(self._encoded(call, record)) as results:
            return [result async for result in results]

    async def _events(self, call: CallT, record: Record) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._encoded(call, record)) as results:
            async for result in results:
                yield await self.resources.offload(self.event, call, result)

    def add_to(self, app: FastAPI) -> None:
        """Put the path into an application and its documentation."""
        summary, _, description = (type(self).__doc__ or "").partition("\n")
        app.add_api_route(
            self.path,
            self.handle,
            methods=["POST"],
            summary=summary.strip(" ."),
            description=description,
            openapi_extra=request_body(self.fields, self.media_types, self.limits),
            responses={200: {"content": {kind: {} for kind in self.answers}}, **_REFUSALS},
            response_model=None,
        )


_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "Will never be done as sent; names the field."},
    401: {"description": "No valid API key."},
    404: {"description": "No such category, adapter or base; names the nearest."},
    408: {"description": "timeout_s has passed, or the body did not arrive."},
    409: {"description": "The adapter was replaced meanwhile: ask again."},
    413: {"description": "More bytes than are read."},
    415: {"description": "Another content type."},
    429: {"description": "Too much to do; Retry-After says when to come back."},
}


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
