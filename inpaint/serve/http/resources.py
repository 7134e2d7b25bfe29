"""What all requests of a process share: the limits, threads for their pictures, and the memory that they hold."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from starlette.requests import Request

from inpaint.serve.http.body import read_body
from inpaint.serve.http.errors import Problem, overloaded
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.http.record import Record, record_of

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
        """The body as `parse(body, content type)` understands it, in a thread. Raises Problem."""
        record = record_of(request)
        coding = request.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            message = "content-encoding: bodies are read as they are; send it uncompressed"
            raise Problem(message, status=415, code="unsupported_encoding", field="content-encoding")
        declared = request.headers.get("content-length")
        body = await read_body(self._counted(request, record), declared, self.settings)
        return await self.offload(parse, body, request.headers.get("content-type", ""))

    async def _counted(self, request: Request, record: Record) -> AsyncGenerator[bytes, None]:
        async for chunk in request.stream():
            record.bytes_in += len(chunk)
            self.hold(record, len(chunk))
            yield chunk
