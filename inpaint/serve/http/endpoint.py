"""One path of an application, whatever it paints: read (bytes -> a checked call), submit, answer.

An application says its fields (`schema.Fields`), what they mean (`read`), what is done (`submit`) and, where it is more
than a picture, how that is answered (`answer`, `event`). The rest is here.

Guaranteed: `read`, `answer`, `event` and encoding run in a thread, never on the event loop; `submit` runs in one task
from beginning to end, so that it may use task-bound contexts, and like `prepare` before it is closed at once when the
client goes; what a request keeps in memory is counted until its answer is out.
"""

import asyncio
import base64
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from fastapi import FastAPI
from PIL import Image
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from inpaint.errors import InpaintError
from inpaint.serve.http.body import FORM, JSON, parse_body
from inpaint.serve.http.errors import OWN, Dialect, bad, problem_of
from inpaint.serve.http.limits import BYTES_PER_PIXEL, HttpSettings
from inpaint.serve.http.receipt import Encoding, Receipt, encode
from inpaint.serve.http.resources import Record, Resources
from inpaint.serve.http.schema import Bounds, FieldsT, file_fields, read_fields, request_body

RequestT = TypeVar("RequestT")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Call(Generic[RequestT]):
    """A checked request; applications may add to it."""

    request: RequestT
    """What shall be done."""
    receipt: Receipt
    """Of the first picture; the next ones have the next seeds."""
    encoding: Encoding = Encoding()
    """How its pictures are written."""
    finish: Callable[[np.ndarray], Image.Image] = Image.fromarray
    """What is written of a picture (H x W x 3 uint8): the photo's own numbers around what was painted."""
    model: str = ""
    """As the client named it, for the log; empty: the receipt's base."""
    n: int = 1
    """Pictures asked for."""
    pixels: int = 0
    """Of the photo: what the request keeps in memory is counted by them."""
    stream: bool = False
    """Whether pictures are sent as events while others are still awaited."""
    warnings: tuple[str, ...] = ()
    """What was accepted without effect; told in `x-warnings`."""


CallT = TypeVar("CallT", bound=Call[Any])


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """What came of a call: one of its pictures, or what one looks like on the way."""

    number: int = 0
    """Which of the call's."""
    image: np.ndarray
    """H x W x 3 uint8."""
    about: Any = None
    """What else its application knows of it."""
    warnings: tuple[str, ...] = ()
    """What was found to have no effect only now."""
    file: bytes = b""
    """With its receipt, once the endpoint has encoded it."""

    @property
    def base64(self) -> str:
        """Of the file."""
        return base64.b64encode(self.file).decode("ascii")


class Endpoint(ABC, Generic[FieldsT, CallT]):
    """`POST path`. Each subclass's docstring begins with its line in /docs, followed by what else is to be said."""

    path: ClassVar[str]
    dialect: ClassVar[Dialect] = OWN
    fields: type[FieldsT]
    media_types: ClassVar[tuple[str, ...]] = (FORM, JSON)
    answers: ClassVar[tuple[str, ...]] = ("image/png", "image/jpeg", "image/webp")
    """Content types of answers, for /docs."""
    n_field: ClassVar[str] = "n"
    """Blamed where all pictures together have too many pixels."""

    def __init__(self, settings: HttpSettings, **limits: int) -> None:
        """Args: limits: what bounds of the fields may name beside the settings."""
        self.settings = settings
        self.limits: Bounds = {**vars(settings), **limits}

    @abstractmethod
    def read(self, fields: FieldsT) -> CallT:
        """Check what the fields mean together, and decode their pictures. Raises InpaintError."""

    async def prepare(self, call: CallT, record: Record) -> CallT:
        """The call, with what others have to be asked for before it can be submitted. Raises InpaintError."""
        return call

    @abstractmethod
    def submit(self, call: CallT, record: Record) -> AsyncGenerator[Picture, None]:
        """Do it, and give pictures as they come; for the record, say what they took. Raises InpaintError.

        A picture whose kept pixels were changed must not come out.
        """

    def infotext(self, call: CallT, seed: int) -> str:
        """Text for a picture's `parameters` chunk."""
        return ""

    def answer(self, call: CallT, pictures: Sequence[Picture]) -> Response:
        """The answer with all pictures, by their numbers."""
        return Response(pictures[0].file, media_type=f"image/{call.encoding.format}")

    def event(self, call: CallT, picture: Picture) -> bytes:
        """A picture as a server-sent event, where the call asked for a stream."""
        raise AssertionError(f"{self.path} has no stream")

    async def handle(self, request: Request) -> Response:
        """A request's way through all of it. Raises ClientDisconnect where the client has gone."""
        record: Record = request.state.record
        resources: Resources = request.state.resources
        call = await resources.read(request, self._read)
        record.model, record.n, record.pixels = call.model or call.receipt.base, call.n, call.pixels
        resources.hold(record, BYTES_PER_PIXEL * call.n * call.pixels)
        call = await until_gone(request.receive, self.prepare(call, record))
        headers = {
            "x-kept-pixels-changed": "0",
            "x-seed": str(call.receipt.seed),
            "x-base-revision": call.receipt.base_revision,
            "x-adapter-digest": ",".join(use.digest for use in call.receipt.adapters),
        }
        if call.stream:
            headers |= {"cache-control": "no-store", **_told(call.warnings)}
            events = self._done(call, request, self._event)
            return EventStream(events, headers=headers, media_type="text/event-stream")
        pictures = await until_gone(request.receive, _all(self._done(call, request, self._encoded)))
        found = dict.fromkeys(warning for picture in pictures for warning in picture.warnings)
        call = replace(call, warnings=(*call.warnings, *found))
        response = await resources.offload(self.answer, call, sorted(pictures, key=lambda picture: picture.number))
        response.headers.update(headers | _told(call.warnings))
        return response

    def _read(self, body: bytes, content_type: str) -> CallT:
        files, settings = file_fields(self.fields), self.settings
        values = parse_body(body, content_type, self.media_types, files, settings.max_parts)
        call = self.read(read_fields(self.fields, values, self.limits))
        total, most = call.n * call.pixels, settings.max_answer_pixels
        if total > most:
            message = f"{call.n} pictures of {call.pixels:,} pixels = {total:,}, the limit is {most:,}"
            raise bad(self.n_field, message, "too_many_pixels")
        return call

    async def _done(
        self, call: CallT, request: Request, write: Callable[[CallT, Picture], T]
    ) -> AsyncGenerator[T, None]:
        """What is written of each picture, as they come."""
        async with aclosing(self.submit(call, request.state.record)) as pictures:
            async for picture in pictures:
                yield await request.state.resources.offload(write, call, picture)

    def _encoded(self, call: CallT, picture: Picture) -> Picture:
        receipt = replace(call.receipt, seed=call.receipt.seed + picture.number)
        file = encode(call.finish(picture.image), call.encoding, receipt, self.infotext(call, receipt.seed))
        return replace(picture, file=file)

    def _event(self, call: CallT, picture: Picture) -> bytes:
        return self.event(call, self._encoded(call, picture))

    def add_to(self, app: FastAPI) -> None:
        """Put the path into an application and its documentation; what belongs to it, too, in subclasses."""
        summary, _, description = (type(self).__doc__ or "").partition("\n")
        app.add_api_route(
            self.path,
            self.handle,
            methods=["POST"],
            summary=summary.strip(" ."),
            description=description.strip() or summary,  # else FastAPI shows the docstring of `handle`
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
    422: {"description": "It failed alone, too, though painters work: asking again is no use."},
    429: {"description": "Too much to do; Retry-After says when to come back."},
}


class EventStream(StreamingResponse):
    """Server-sent events. Nothing is sent before the first one: whatever goes wrong until then is a status."""

    body_iterator: AsyncGenerator[bytes, None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_gone(receive, self._send_events(Request(scope), send))

    async def _send_events(self, request: Request, send: Send) -> None:
        started = False
        async with aclosing(self.body_iterator) as events:
            try:
                async for event in events:
                    if not started:
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                        started = True
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            except InpaintError as error:
                if not started:
                    raise
                await send({"type": "http.response.body", "body": _last_event(request, error), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _told(warnings: tuple[str, ...]) -> dict[str, str]:
    return {"x-warnings": "; ".join(warnings).encode("ascii", "replace").decode()[:1000]} if warnings else {}


def _last_event(request: Request, error: InpaintError) -> bytes:
    """Of a stream that an error ends; the record hears of it, too."""
    record, problem = request.state.record, problem_of(error)
    record.problem = problem.code
    return sse("error", request.state.dialect.error(problem, record.id))


def sse(kind: str, value: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(value)}\n\n".encode()


async def _all(results: AsyncGenerator[T, None]) -> list[T]:
    async with aclosing(results):
        return [result async for result in results]


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The work's result. Cancels it, and waits for its end, where this task is cancelled or the client goes first.

    Raises ClientDisconnect in the latter case.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
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
        # What it raised came through this frame: it would keep itself, and the request.
        del working, watching
