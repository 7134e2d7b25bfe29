"""`build_http(...)`: endpoints behind request ids, keys, limits and a log, with /health, /ready and /docs.

Guaranteed: what a client did wrong is a 4xx in its dialect's form; every answer has an `x-request-id`, every request
one line in the log `inpaint.serve.requests`.
"""

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inpaint.errors import InpaintError
from inpaint.serve.http.endpoint import Endpoint
from inpaint.serve.http.errors import OWN, Dialect, Problem, overloaded, problem_of
from inpaint.serve.http.keys import ApiKeys
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.http.resources import HttpMetrics, Record, Resources
from inpaint.serve.shares import Shares

logger = logging.getLogger(__name__)


def build_http(
    title: str,
    endpoints: Sequence[Endpoint[Any, Any]],
    settings: HttpSettings,
    healthy: Callable[[], Awaitable[bool]],
    metrics: HttpMetrics | None = None,
    description: str = "",
) -> FastAPI:
    """The ASGI application; further GETs can be added to it. /ready asks `healthy` whether work can be done now.

    Raises InpaintError: keys are unusable, or there are none and the host is not a loopback address.
    """
    app = FastAPI(title=title, version="1", description=description)
    for endpoint in endpoints:
        endpoint.add_to(app)

    @app.get("/health", tags=["health"], summary="Whether this process answers")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", tags=["health"], summary="Whether the work can be done now", responses={503: {}})
    async def ready() -> Response:
        if await healthy():
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready"}, status_code=503, headers={"retry-after": "5"})

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        """Of paths and methods: told as our own problems are."""
        code = {404: "no_such_path", 405: "no_such_method"}.get(error.status_code, "refused")
        message = f"{error.detail}: {request.method} {request.state.record.path}"
        raise Problem(message, status=error.status_code, code=code, headers=dict(error.headers or {}))

    app.add_middleware(
        RequestMiddleware,
        keys=ApiKeys(settings),
        metrics=metrics or HttpMetrics(),
        resources=Resources(settings),
        dialects=[*(endpoint.dialect for endpoint in endpoints), OWN],
    )
    return app


@dataclass(eq=False)
class RequestMiddleware:
    """Around every request: its id, its key, its line in the log, and the last net for our own mistakes.

    Puts `record`, `dialect` and `resources` into the request's state.
    """

    app: ASGIApp
    keys: ApiKeys
    metrics: HttpMetrics
    resources: Resources
    dialects: Sequence[Dialect]
    in_flight: Shares = field(default_factory=Shares)
    """By key."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        dialect = next((one for one in self.dialects if one is not OWN and path.startswith(one.prefix)), OWN)
        # A client's own id goes into the log and into headers.
        given = request.headers.get("x-request-id", "")
        name = given if re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", given) else uuid.uuid4().hex
        record = Record(id=name, dialect=dialect.name, method=request.method, path=path[:200])
        request.state.record, request.state.dialect, request.state.resources = record, dialect, self.resources

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.id
            elif message["type"] == "http.response.body":
                record.bytes_out += len(message.get("body", b""))
            await send(message)

        self.metrics.began(dialect.name)
        try:
            await self._answer(request, watched)
        finally:
            self.in_flight.give_back(record.key, 1)
            self.resources.release(record)
            # No answer was begun: the client left, or the server cancelled us because it did.
            record.status = record.status or 499
            record.seconds = time.monotonic() - record.started
            self.metrics.ended(record)
            record.log()

    async def _answer(self, request: Request, send: Send) -> None:
        record: Record = request.state.record
        try:
            self._let_in(request)
            return await self.app(request.scope, request.receive, send)
        except ClientDisconnect:
            logger.info("request %s: its client has gone", record.id)
            return
        except Exception as error:
            response = _told(request, error)
            if record.status:
                raise  # half an answer is out: only closing the connection tells the client
        await response(request.scope, request.receive, send)

    def _let_in(self, request: Request) -> None:
        """Raises Problem: too much is in flight, or no key."""
        record: Record = request.state.record
        settings = self.resources.settings
        if record.path in settings.open_paths:
            return
        key = self.keys.name_of(request.headers)
        if key is None:
            ways = "`Authorization: Bearer KEY`, Basic with the key as password, or `x-api-key: KEY`"
            challenge = {"www-authenticate": request.state.dialect.challenge}
            raise Problem(f"no valid API key: send {ways}", status=401, code="invalid_api_key", headers=challenge)
        held = self.in_flight.held(key)
        if held and held + 1 > self.in_flight.share(key, settings.max_in_flight):
            raise overloaded(f"{held:.0f} requests of yours are being handled: come back later", 1.0)
        record.key = key
        self.in_flight.take(key, 1)


def _told(request: Request, error: Exception) -> Response:
    """What the client is told, and the record too. Here, and not where the error is caught: a frame that the error came
    through and that names it would keep both, and the body, until the garbage collector comes by."""
    record: Record = request.state.record
    if not isinstance(error, InpaintError):
        logger.exception("request %s failed", record.id)
        error = Problem(f"our own fault; quote request {record.id}", status=500, code="internal")
    problem, dialect = problem_of(error), request.state.dialect
    record.problem = problem.code
    return JSONResponse(dialect.error(problem, record.id), problem.status, problem.headers, dialect.media_type)
