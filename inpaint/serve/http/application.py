"""`build_http(...)`: endpoints behind keys, limits, request ids and a log, with /health, /ready and /docs."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from inpaint.errors import InpaintError
from inpaint.serve.http.endpoint import Endpoint
from inpaint.serve.http.errors import Dialect
from inpaint.serve.http.keys import ApiKeys
from inpaint.serve.http.middleware import RequestMiddleware, error_response
from inpaint.serve.http.record import HttpMetrics, NoMetrics
from inpaint.serve.http.resources import Resources


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
        metrics=metrics or NoMetrics(),
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
