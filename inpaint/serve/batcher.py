"""Requests for one model that are waiting at the same time share its calls.

Guaranteed: a request whose client has gone is not begun, and a batch whose clients have all gone ends at its next
tick; one that is at fault fails alone; what waits is bounded.
Not covered: joining a batch that has begun. Its requests go through the same steps together.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from inpaint.errors import InpaintError
from inpaint.serve.service import Overloaded

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")

Work = Callable[[Sequence[RequestT], Callable[[], None]], list[ResultT]]
"""(requests of one kind, tick) -> their results in order. Calls `tick` now and then, which raises once nobody waits."""


class _Abandoned(Exception):
    """Nobody waits for the batch any more."""


@dataclass(eq=False)
class _Waiting(Generic[RequestT, ResultT]):
    request: RequestT
    done: "asyncio.Future[ResultT]"


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
        self._waiting: list[_Waiting[RequestT, ResultT]] = []
        self._loop: asyncio.Task[None] | None = None
        self._seconds_per_request = 1.0

    async def submit(self, request: RequestT) -> ResultT:
        """The request's result. Cancelling takes the request out.

        Raises:
            Overloaded: too many are waiting.
            InpaintError: this cannot be done.
        """
        if len(self._waiting) >= self.max_waiting:
            wait = self._seconds_per_request * len(self._waiting)
            raise Overloaded(f"{len(self._waiting)} requests are waiting, which is the limit", wait)
        waiting: _Waiting[RequestT, ResultT] = _Waiting(request, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._loop is None:
            self._loop = asyncio.create_task(self._run())
        try:
            return await waiting.done
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    async def check(self, probe: RequestT, timeout_s: float) -> None:
        """See real work done: the next tick of the batch that is running, else the probe.

        Raises:
            TimeoutError: nothing was done for so long.
        """
        before = self._ticks
        async with asyncio.timeout(timeout_s):
            if self._loop is None:
                await self.submit(probe)
            while self._loop is not None and self._ticks == before:
                await asyncio.sleep(0.1)

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._do(self._take())
        finally:
            self._loop = None

    def _take(self) -> list[_Waiting[RequestT, ResultT]]:
        """The oldest, and those that can share its batch."""
        kind = self._kind(self._waiting[0].request)
        batch = [one for one in self._waiting if self._kind(one.request) == kind][: self.max_batch]
        self._waiting = [one for one in self._waiting if one not in batch]
        return batch

    async def _do(self, batch: list[_Waiting[RequestT, ResultT]]) -> None:
        def tick() -> None:
            self._ticks += 1
            if all(one.done.cancelled() for one in batch):
                raise _Abandoned

        began = time.monotonic()
        try:
            results = await asyncio.to_thread(self._work, [one.request for one in batch], tick)
        except _Abandoned:
            return
        except InpaintError as error:
            if len(batch) > 1:
                # One of them is at fault: the others are done without it.
                for one in batch:
                    await self._do([one])
                return
            self._tell(batch[0], error)
            return
        except BaseException as error:
            for one in batch:
                self._tell(one, error)
            if not isinstance(error, Exception):
                raise
            return
        self._seconds_per_request = (time.monotonic() - began) / len(batch)
        for one, result in zip(batch, results, strict=True):
            if not one.done.done():
                one.done.set_result(result)

    def _tell(self, one: _Waiting[RequestT, ResultT], error: BaseException) -> None:
        if not one.done.done():
            one.done.set_exception(error)
