"""One path of an application, whatever it paints: read (bytes -> a checked call), submit, encode, answer.

An application says its fields (`schema.Fields`), what they mean (`read`), what is done (`submit`), how a result is
written (`encode`) and how all of them are answered (`answer`). The rest is here.

Guaranteed: `read`, `encode` and `answer` run in a thread, never on the event loop; `submit` runs in one task from
beginning to end, so that it may use task-bound contexts, and is closed at once when the client goes; what a request
keeps in memory is counted until its answer is out.
"""

import base64
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from inpaint.serve.http.body import FORM, JSON, parse_body
from inpaint.serve.http.errors import Problem, problem_details
from inpaint.serve.http.limits import BYTES_PER_PIXEL, HttpSettings
from inpaint.serve.http.record import Record, record_of
from inpaint.serve.http.resources import Resources
from inpaint.serve.http.schema import FieldsT, Limits, file_fields, read_fields, request_body
from inpaint.serve.http.stream import EventStream, sse, until_gone


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """A checked request; applications add what they need to do it."""

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


CallT = TypeVar("CallT", bound=Call)
ResultT = TypeVar("ResultT")


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
    408: {"description": "timeout_s has passed."},
    409: {"description": "The adapter was replaced meanwhile: ask again."},
    413: {"description": "More bytes than are read."},
    415: {"description": "Another content type."},
    429: {"description": "Too much to do; Retry-After says when to come back."},
}
