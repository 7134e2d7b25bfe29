"""`build_http(...)`: endpoints behind request ids, keys, limits and a log, with /health, /ready and /docs.

Guaranteed: what a client did wrong is a 4xx in its dialect's form; every answer has an `x-request-id`, every request
one line in the log `inpaint.serve.requests`.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inpaint.errors import InpaintError
from inpaint.serve.http.endpoint import Endpoint
from inpaint.serve.http.errors import OWN, Dialect, Problem, overloaded, problem_of
from inpaint.serve.http.keys import ApiKeys
from inpaint.serve.http.record import GONE, HttpMetrics, Record, request_id
from inpaint.serve.http.resources import Resources

logger = logging.getLogger(__name__)


def build_http(
    title: str,
    endpoints: Sequence[Endpoint[Any, Any, Any]],
    resources: Resources,
    healthy: Callable[[], Awaitable[bool]],
    metrics: HttpMetrics | None = None,
    *,
    dialects: Sequence[Dialect] = (),
    description: str = "",
) -> FastAPI:
    """The ASGI application; further GETs can be added to it.

    Args:
        healthy: whether the work can be done now; asked by /ready.
        dialects: forms of errors other than our own, by the prefix of their paths.

    Raises:
        InpaintError: keys are unusable, or there are none and the host is not a loopback address.
    """
    app = FastAPI(title=title, version="1", description=description)
    for endpoint in endpoints:
        endpoint.add_to(app)
    _add_health(app, healthy)
    for kind in (InpaintError, HTTPException):
        app.add_exception_handler(kind, error_response)
    app.add_middleware(
        RequestMiddleware,
        keys=ApiKeys(resources.settings),
        metrics=metrics or HttpMetrics(),
        resources=resources,
        dialects=dialects,
    )
    return app


def _add_health(app: FastAPI, healthy: Callable[[], Awaitable[bool]]) -> None:
    @app.get("/health", tags=["health"], summary="Whether this process answers")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", tags=["health"], summary="Whether the work can be done now", responses={503: {}})
    async def ready() -> Response:
        if await healthy():
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready"}, status_code=503, headers={"retry-after": "5"})


class RequestMiddleware:
    """Around every request: its id, its key, its line in the log, and the last net for our own mistakes.

    Puts `record` and `dialect` into the request's state.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: ApiKeys,
        metrics: HttpMetrics,
        resources: Resources,
        dialects: Sequence[Dialect],
    ) -> None:
        self.app = app
        self.keys = keys
        self.metrics = metrics
        self.resources = resources
        self.settings = resources.settings
        self.dialects = (*dialects, OWN)
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            if scope["type"] == "lifespan":
                self.resources.close()
            return
        headers = Headers(scope=scope)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        dialect = next((one for one in self.dialects if path.startswith(one.prefix)), OWN)
        given = headers.get("x-request-id")
        record = Record(id=request_id(given), dialect=dialect.name, method=scope["method"], path=path[:200])
        scope.setdefault("state", {}).update(record=record, dialect=dialect)
        self._in_flight += 1
        self.metrics.began(dialect.name)
        try:
            await self._guarded(scope, receive, _watched(send, record), headers)
        finally:
            self._in_flight -= 1
            self.resources.release(record)
            # No answer was begun: the client left, or the server cancelled us because it did.
            record.status = record.status or GONE
            record.seconds = time.monotonic() - record.started
            self.metrics.ended(record)
            record.log()

    async def _guarded(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        request = Request(scope)
        record: Record = request.state.record
        try:
            refusal = self._refusal(headers, request)
            if refusal is None:
                await self.app(scope, receive, send)
            else:
                await (await error_response(request, refusal))(scope, receive, send)
        except ClientDisconnect:
            logger.info("request %s: its client has gone", record.id)
            if not record.status:
                record.status = GONE
        except Exception:
            logger.exception("request %s failed", record.id)
            if record.status:
                raise  # half an answer is out: only closing the connection tells the client
            problem = Problem(f"our own fault; quote request {record.id}", status=500, code="internal")
            await (await error_response(request, problem))(scope, receive, send)

    def _refusal(self, headers: Headers, request: Request) -> Problem | None:
        record: Record = request.state.record
        if record.path in self.settings.open_paths:
            return None
        if self._in_flight > self.settings.max_in_flight:
            return overloaded(f"{self.settings.max_in_flight} requests are being handled: come back later", 1.0)
        key = self.keys.name_of(headers)
        if key is not None:
            record.key = key
            return None
        return Problem(
            "no valid API key: send `Authorization: Bearer KEY`, Basic with the key as password, or `x-api-key: KEY`",
            status=401,
            code="invalid_api_key",
            headers={"www-authenticate": request.state.dialect.challenge},
        )


async def error_response(request: Request, error: Exception) -> Response:
    """What went wrong, in the form of the request's dialect: our own errors, and Starlette's of paths and methods."""
    record, dialect = request.state.record, request.state.dialect
    if isinstance(error, HTTPException):
        code = {404: "no_such_path", 405: "no_such_method"}.get(error.status_code, "refused")
        problem = Problem(f"{error.detail}: {record.method} {record.path}", status=error.status_code, code=code)
        problem.headers.update(error.headers or {})
    else:
        assert isinstance(error, InpaintError)
        problem = problem_of(error)
    record.problem = problem.code
    response: Response = dialect.error_response(problem, record.id)
    return response


def _watched(send: Send, record: Record) -> Send:
    """Notes what goes out, and puts the request's id on it."""

    async def watched(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = record.id
        elif message["type"] == "http.response.body":
            record.bytes_out += len(message.get("body", b""))
        await send(message)

    return watched
