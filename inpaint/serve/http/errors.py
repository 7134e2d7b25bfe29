"""What a client is told when it gets no picture: one exception, which each dialect writes in its own form.

Status codes are chosen by what a retry would do, for SDKs retry 408, 409, 429 and all 5xx and send the whole body
again: 400, 404, 413, 415, 422 for what will never succeed; 429 with `Retry-After` for load; 409 where the same request
will be understood anew (an adapter was replaced meanwhile); 408 with `x-should-retry: false` for a deadline that the
client set; 5xx only for our own faults.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from inpaint.errors import BadRow, InpaintError
from inpaint.serve.service import AdapterGone, DeadlinePassed, Overloaded, Unpaintable

_SHOWN = 60  # characters of a bad value that are told


class Problem(InpaintError):
    """An answer without a picture; its message names the value, the limit and the way out.

    Args:
        code: short and fixed, so that programs can tell problems apart.
        field: the request's field at fault, as the client named it.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "invalid_value",
        field: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.field, self.headers = status, code, field, headers or {}


def bad(field: str, message: str, code: str = "invalid_value", status: int = 400) -> Problem:
    """A Problem whose message begins with its field."""
    return Problem(f"{field}: {message}", status=status, code=code, field=field)


def overloaded(message: str, retry_after_s: float) -> Problem:
    """A 429 that says when to come back, in whole seconds and at least one."""
    wait = max(1, math.ceil(retry_after_s)) if math.isfinite(retry_after_s) else 60
    return Problem(message, status=429, code="overloaded", headers={"retry-after": str(wait)})


def problem_of(error: InpaintError) -> Problem:
    """How the service's and the package's own errors are told."""
    message = str(error)
    match error:
        case Problem():
            return error
        case Overloaded():
            return overloaded(message, error.retry_after_s)
        case DeadlinePassed():
            return Problem(message, status=408, code="deadline_passed", headers={"x-should-retry": "false"})
        case Unpaintable():
            return Problem(message, status=422, code="unpaintable", headers={"x-should-retry": "false"})
        case AdapterGone():
            return Problem(message, status=409, code="adapter_gone", headers={"retry-after": "1"})
        case BadRow():
            return Problem(message, code=re.sub(r"\W+", "_", error.reason), field=error.field)
    # The package's messages begin with the setting's name.
    name = re.match(r"[a-z_]+", message)
    return Problem(message, field=name.group() if name else None)


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How the clients of some paths are told problems."""

    name: str
    """In the log and the metrics."""
    prefix: str
    """Its paths begin with this."""
    challenge: str
    """`www-authenticate` of an answer to a request without a key."""
    error: Callable[[Problem, str], dict[str, Any]]
    """(problem, request's id) -> the answer's JSON, also of a stream's last event."""
    media_type: str = "application/json"


def _problem_details(problem: Problem, request_id: str) -> dict[str, Any]:
    return {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": str(problem),
        "code": problem.code,
        "field": problem.field,
        "request_id": request_id,
    }


OWN = Dialect(
    name="own",
    prefix="/",
    challenge='Bearer realm="inpaint", Basic realm="inpaint"',
    error=_problem_details,
    media_type="application/problem+json",
)
"""RFC 9457's problem details, for every path that belongs to no other dialect."""


def shown(value: object) -> str:
    """A value as it is told to a client: short, on one line, printable."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "a number of many digits"
    text = ascii(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
