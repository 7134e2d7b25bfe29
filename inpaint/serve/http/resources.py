"""What all requests of a process share: the limits, threads for their pictures, and the memory that they hold."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from starlette.requests import Request

from inpaint.serve.http.errors import Problem, bad, overloaded
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.http.record import Record

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Resources:
    """Used from one event loop."""

    def __init__(self, settings: HttpSettings) -> None:
        self.settings = settings
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="pictures")
        self._held = 0

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

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

        Raises:
            Problem: of `parse`, 415 for a compressed body, 413 above `max_body_bytes`, 408 for one that took too long.
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
