"""What is known of a request when it has been answered: one JSON line in the log, and figures for whoever counts."""

import json
import logging
import re
import time
import uuid
from dataclasses import asdict, dataclass, field

from starlette.requests import Request

logger = logging.getLogger("inpaint.serve.requests")
"""One line per request, a JSON object with the fields of `Record`."""

GONE = 499
"""Status in the log of a client that left before its answer; nobody receives it."""


@dataclass(kw_only=True)
class Record:
    """One request; filled in while it is handled."""

    id: str
    dialect: str
    """openai, a1111 or own."""
    method: str
    path: str
    key: str = ""
    """Name of the API key; `-` where none is needed."""
    model: str = ""
    """As the client named it, where it was understood."""
    pixels: int = 0
    """Of the photo."""
    n: int = 0
    """Pictures asked for."""
    steps: int = 0
    """Denoising steps taken, all pictures together."""
    status: int = 0
    problem: str = ""
    """Code of the problem, where there was one."""
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    queue_s: float = 0.0
    """Longest of its pictures."""
    paint_s: float = 0.0
    """Longest of its pictures."""
    held: int = 0
    """Bytes that are counted for it in memory now."""
    started: float = field(default_factory=time.monotonic, repr=False)

    def log(self) -> None:
        """Write the line."""
        values = {name: value for name, value in asdict(self).items() if name not in ("started", "held")}
        values.update({name: round(values[name], 4) for name in ("seconds", "queue_s", "paint_s")})
        logger.info(json.dumps(values))


class HttpMetrics:
    """Counts nothing; subclasses do. Called on the event loop: must not block."""

    def began(self, dialect: str) -> None:
        """A request came: one more is in flight."""

    def ended(self, record: Record) -> None:
        """It was answered, or its client left (status 499): one less is in flight."""


def request_id(given: str | None) -> str:
    """The client's id if it is sane (it goes into logs and headers), else a new one."""
    if given is not None and re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", given):
        return given
    return uuid.uuid4().hex


def record_of(request: Request) -> Record:
    """The record that the middleware opened for the request."""
    record = request.state.record
    assert isinstance(record, Record)
    return record
