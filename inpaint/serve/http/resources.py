"""What is known of a request, and what all requests of a process share: limits, threads, and the memory they hold."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TypeVar, TypeVarTuple

from starlette.requests import Request

from inpaint.serve.http.errors import Problem, bad, overloaded
from inpaint.serve.http.limits import HttpSettings

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
logger = logging.getLogger("inpaint.serve.requests")
"""One line per request, a JSON object with the fields of `Record`."""


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
    """Of the answer; 499 where the client left before it, and nobody received one."""
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
        """It was answered, or its client left: one less is in flight."""


class Resources:
    """Used from one event loop."""

    def __init__(self, settings: HttpSettings) -> None:
        self.settings = settings
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="pictures")
        self._held = 0

    async def offload(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Run `work` in a thread; at most `threads` run at once."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def hold(self, record: Record, count: int) -> None:
        """Count bytes that the request keeps in memory, until `release`. Raises Problem 429 where all hold too many."""
        most = self.settings.max_held_bytes
        if self._held + count > most:
            raise overloaded(f"requests hold {self._held:,} bytes in memory, the limit is {most:,}", 2.0)
        self._held += count
        record.held += count

    def release(self, record: Record) -> None:
        """The request holds nothing any more."""
        self._held -= record.held
        record.held = 0

    async def read(self, request: Request, parse: Callable[[bytes, str], T]) -> T:
        """The body as `parse(body, content type)` understands it, in a thread.

        Raises Problem: `parse`'s, 415 for a compressed body, 413 above `max_body_bytes`, 408 where it took too long.
        """
        record: Record = request.state.record
        headers, most = request.headers, self.settings.max_body_bytes

        def check(length: int) -> None:
            if length > most:
                message = f"{length:,} bytes or more, the limit is {most:,}: scale the pictures down"
                raise bad("body", message, "too_large", 413)

        if headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
            message = "bodies are read as they are; send it uncompressed"
            raise bad("content-encoding", message, "unsupported_encoding", 415)
        # Only ever used to refuse sooner.
        declared = headers.get("content-length", "")
        if declared.isdecimal() and len(declared) < 20:
            check(int(declared))
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.body_timeout_s):
                async for chunk in request.stream():
                    record.bytes_in += len(chunk)
                    self.hold(record, len(chunk))
                    body += chunk
                    check(len(body))
        except TimeoutError as error:
            message = f"the body had not arrived after {self.settings.body_timeout_s:g} s: send it again"
            raise Problem(message, status=408, code="body_timeout") from error
        return await self.offload(parse, bytes(body), headers.get("content-type", ""))
