"""Requests for one model that are waiting at the same time share its calls.

Guaranteed: a request whose client has gone is not begun, and a batch whose clients have all gone ends at its next
tick; one that is at fault fails alone; what waits is bounded.
Not covered: joining a batch that has begun. Its requests go through the same steps together.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from inpaint.errors import InpaintError
from inpaint.serve.service import Overloaded

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")

Work = Callable[[Sequence[RequestT], Callable[[], None]], list[ResultT]]
"""(requests of one kind, tick) -> their results in order. Calls `tick` now and then, which raises once nobody waits."""


class _Abandoned(Exception):
    """Nobody waits for the batch any more."""


class Batcher(Generic[RequestT, ResultT]):
    """Works in a thread of its own, one batch at a time. Use it from one asyncio loop."""

    def __init__(
        self,
        work: Work[RequestT, ResultT],
        kind: Callable[[RequestT], Hashable] = lambda request: None,
        *,
        max_batch: int = 16,
        max_waiting: int = 256,
    ) -> None:
        """Args: kind: what requests must have in common to share a batch."""
        if max_batch < 1 or max_waiting < 1:
            raise InpaintError(f"max_batch {max_batch}, max_waiting {max_waiting}: give at least 1")
        self._work, self._kind = work, kind
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self._ticks = 0
        self._waiting: dict[asyncio.Future[ResultT], tuple[Hashable, RequestT]] = {}
        """With their kinds."""
        self._loop: asyncio.Task[None] | None = None
        self._seconds_per_request = 1.0

    async def submit(self, request: RequestT) -> ResultT:
        """The request's result; cancelling takes the request out. Raises Overloaded, or what kind or work raises."""
        if len(self._waiting) >= self.max_waiting:
            wait = self._seconds_per_request * len(self._waiting)
            raise Overloaded(f"{len(self._waiting)} requests are waiting, which is the limit", wait)
        result = asyncio.get_running_loop().create_future()
        self._waiting[result] = self._kind(request), request
        if self._loop is None:
            self._loop = asyncio.create_task(self._run())
        try:
            return await result
        finally:
            self._waiting.pop(result, None)

    async def check(self, probe: RequestT, timeout_s: float) -> None:
        """See work done: of the batch that is running, else the probe. Raises TimeoutError, or what the work raises."""
        before = self._ticks
        async with asyncio.timeout(timeout_s):
            while self._loop is not None and self._ticks == before:
                await asyncio.sleep(0.1)
            if self._ticks == before:
                await self.submit(probe)

    async def _run(self) -> None:
        try:
            while self._waiting:
                # The oldest, and those that can share its batch.
                oldest, _ = next(iter(self._waiting.values()))
                alike = [result for result, (kind, _) in self._waiting.items() if kind == oldest]
                await self._do({result: self._waiting.pop(result)[1] for result in alike[: self.max_batch]})
        finally:
            self._loop = None

    async def _do(self, batch: dict[asyncio.Future[ResultT], RequestT]) -> None:
        batch = {result: request for result, request in batch.items() if not result.cancelled()}
        if not batch:
            return

        def tick() -> None:
            self._ticks += 1
            if all(result.cancelled() for result in batch):
                raise _Abandoned

        began = time.monotonic()
        try:
            values = await asyncio.to_thread(self._work, list(batch.values()), tick)
            done = list(zip(batch, values, strict=True))
        except _Abandoned:
            return
        except BaseException as error:
            if isinstance(error, InpaintError) and len(batch) > 1:
                # One of them is at fault: the others are done without it.
                for result, request in batch.items():
                    await self._do({result: request})
                return
            for result in batch:
                if not result.done():
                    result.set_exception(error)
            if isinstance(error, Exception):
                return
            raise
        self._ticks += 1  # the work may have none of its own
        self._seconds_per_request = (time.monotonic() - began) / len(batch)
        for result, value in done:
            if not result.done():
                result.set_result(value)
