"""The service's HTTP side: `build_http(service, settings)` is an ASGI application with all dialects.

    POST /v1/images/edits     GET /v1/models      OpenAI's SDKs      (dialects/openai.py)
    POST /sdapi/v1/img2img    GET /sdapi/v1/...   A1111's clients    (dialects/a1111.py)
    POST /paint               GET /catalogue      ours               (dialects/own.py)
    GET /health   GET /ready                      without a key

Guaranteed: the service sees checked orders only; what a client did wrong is a 4xx in its dialect's form; every answer
has an `x-request-id`, every request one line in the log `inpaint.serve.requests`.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from types import ModuleType

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inpaint.errors import InpaintError
from inpaint.serve.dialects import a1111, openai, own
from inpaint.serve.service import Service
from inpaint.serve.wire.desk import Counter, Desk
from inpaint.serve.wire.keys import Keys
from inpaint.serve.wire.problems import Problem, overloaded, problem_of
from inpaint.serve.wire.record import GONE, HttpMetrics, NoMetrics, Record, request_id
from inpaint.serve.wire.settings import HttpSettings

__all__ = ["HttpMetrics", "HttpSettings", "Record", "build_http", "enclose"]

logger = logging.getLogger(__name__)


def build_http(service: Service, settings: HttpSettings, metrics: HttpMetrics | None = None) -> FastAPI:
    """The application.

    Raises:
        InpaintError: keys are unusable, or there are none and `settings.host` is not a loopback address.
    """
    desk = Desk(service, settings)
    app = FastAPI(title="inpaint", version="1", description=__doc__)
    for dialect in (openai, a1111, own):
        app.include_router(dialect.router(desk))
    enclose(app, desk, service.healthy, metrics)
    return app


def enclose(
    app: FastAPI, counter: Counter, healthy: Callable[[], Awaitable[bool]], metrics: HttpMetrics | None = None
) -> None:
    """Put the door before an application, and /health and /ready into it.

    Raises:
        InpaintError: keys are unusable, or there are none and the host is not a loopback address.
    """
    keys = Keys(counter.settings)
    _add_health(app, healthy)
    app.add_exception_handler(InpaintError, _told)
    app.add_exception_handler(HTTPException, _told_http)
    app.add_middleware(Door, keys=keys, metrics=metrics or NoMetrics(), counter=counter)


def dialect_of(path: str) -> ModuleType:
    """Whose form an answer to this path has."""
    if path.startswith("/v1/"):
        return openai
    return a1111 if path.startswith("/sdapi/") else own


class Door:
    """Around every request: its id, its key, its line in the log, and the last net for our own mistakes."""

    def __init__(self, app: ASGIApp, *, keys: Keys, metrics: HttpMetrics, counter: Counter) -> None:
        self.app = app
        self.keys = keys
        self.metrics = metrics
        self.counter = counter
        self.settings = counter.settings
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            if scope["type"] == "lifespan":
                self.counter.close()
            return
        headers = Headers(scope=scope)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        name = dialect_of(path).NAME
        given = headers.get("x-request-id")
        record = Record(id=request_id(given), dialect=name, method=scope["method"], path=path[:200])
        scope.setdefault("state", {})["record"] = record
        self._in_flight += 1
        self.metrics.began(name)
        try:
            await self._guarded(scope, receive, _watched(send, record), headers, record)
        finally:
            self._in_flight -= 1
            self.counter.release(record)
            # No answer was begun: the client left, or the server cancelled us because it did.
            record.status = record.status or GONE
            record.seconds = time.monotonic() - record.started
            self.metrics.ended(record)
            record.log()

    async def _guarded(self, scope: Scope, receive: Receive, send: Send, headers: Headers, record: Record) -> None:
        try:
            refusal = self._refusal(headers, record)
            if refusal is None:
                await self.app(scope, receive, send)
            else:
                await _response(refusal, record)(scope, receive, send)
        except ClientDisconnect:
            logger.info("request %s: its client has gone", record.id)
            if not record.status:
                record.status = GONE
        except Exception:
            logger.exception("request %s failed", record.id)
            if record.status:
                raise  # half an answer is out: only closing the connection tells the client
            problem = Problem(f"our own fault; quote request {record.id}", status=500, code="internal")
            await _response(problem, record)(scope, receive, send)

    def _refusal(self, headers: Headers, record: Record) -> Problem | None:
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
            headers={"www-authenticate": dialect_of(record.path).CHALLENGE},
        )


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


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, InpaintError)
    return _response(problem_of(error), request.state.record)


async def _told_http(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    record = request.state.record
    code = {404: "no_such_path", 405: "no_such_method"}.get(error.status_code, "refused")
    problem = Problem(f"{error.detail}: {record.method} {record.path}", status=error.status_code, code=code)
    problem.headers.update(error.headers or {})
    return _response(problem, record)


def _response(problem: Problem, record: Record) -> Response:
    record.problem = problem.code
    response: Response = dialect_of(record.path).told(problem, record.id)
    return response


def _add_health(app: FastAPI, healthy: Callable[[], Awaitable[bool]]) -> None:
    @app.get("/health", tags=["health"], summary="Whether this process answers")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", tags=["health"], summary="Whether pictures can be painted now", responses={503: {}})
    async def ready() -> Response:
        if await healthy():
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready"}, status_code=503, headers={"retry-after": "5"})
