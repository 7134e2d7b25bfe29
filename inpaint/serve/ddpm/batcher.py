"""Requests for a DDPM that are waiting at the same time share its network calls.

Guaranteed: a picture does not depend on what shared its batch (the painter's bound); a request whose client has gone
is not begun, and a batch whose clients have all gone ends at the next network call; what waits is bounded.
Not covered: joining a batch that has begun. Its rows go through the same steps together.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from inpaint.errors import InpaintError
from inpaint.paint.request import DdpmRequest
from inpaint.serve.service import Overloaded

OnFrame = Callable[[int, int, np.ndarray], None]


class Painter(Protocol):
    """What paints (`inpaint.paint.ddpm_painter.DdpmPainter`)."""

    def paint(self, requests: Sequence[DdpmRequest], on_frame: OnFrame | None = None) -> list[np.ndarray]:
        """The originals with their holes painted, in order; `on_frame` is called after each network call."""
        ...

    def shape_of(self, request: DdpmRequest) -> tuple[int, int]:
        """Working height and width."""
        ...


class _Abandoned(Exception):
    """Nobody waits for the batch any more."""


@dataclass(eq=False)
class _Waiting:
    request: DdpmRequest
    done: "asyncio.Future[np.ndarray]"
    came: float = field(default_factory=time.monotonic)


class Batcher:
    """Paints in a thread of its own, one batch at a time. Use it from one asyncio loop."""

    def __init__(self, painter: Painter, *, max_batch: int = 16, max_waiting: int = 256) -> None:
        if max_batch < 1 or max_waiting < 1:
            raise InpaintError(f"max_batch {max_batch}, max_waiting {max_waiting}: give at least 1")
        self.painter, self.max_batch, self.max_waiting = painter, max_batch, max_waiting
        self.evaluations = 0
        """Network calls so far: one who watches it sees whether work goes on."""
        self._waiting: list[_Waiting] = []
        self._loop: asyncio.Task[None] | None = None
        self._seconds_per_request = 1.0

    @property
    def busy(self) -> bool:
        """Whether a batch is being painted."""
        return self._loop is not None

    async def fill(self, request: DdpmRequest) -> np.ndarray:
        """H x W x 3 uint8. Cancelling takes the request out.

        Raises:
            Overloaded: too many are waiting.
            InpaintError: the model cannot paint this.
        """
        if len(self._waiting) >= self.max_waiting:
            wait = self._seconds_per_request * len(self._waiting)
            raise Overloaded(f"{len(self._waiting)} requests are waiting, which is the limit", wait)
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._loop is None:
            self._loop = asyncio.create_task(self._run())
        try:
            return await waiting.done
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._paint(self._take())
        finally:
            self._loop = None

    def _take(self) -> list[_Waiting]:
        """The oldest, and those that can share its network calls."""
        kind = self._kind(self._waiting[0])
        batch = [one for one in self._waiting if self._kind(one) == kind][: self.max_batch]
        self._waiting = [one for one in self._waiting if one not in batch]
        return batch

    def _kind(self, one: _Waiting) -> tuple[object, ...]:
        return one.request.sampling, self.painter.shape_of(one.request)

    async def _paint(self, batch: list[_Waiting]) -> None:
        def watch(done: int, total: int, pictures: np.ndarray) -> None:
            self.evaluations += 1
            if all(one.done.cancelled() for one in batch):
                raise _Abandoned

        began = time.monotonic()
        try:
            pictures = await asyncio.to_thread(self.painter.paint, [one.request for one in batch], watch)
        except _Abandoned:
            return
        except InpaintError as error:
            if len(batch) > 1:
                # One of them is at fault: the others are painted without it.
                for one in batch:
                    await self._paint([one])
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
        for one, picture in zip(batch, pictures, strict=True):
            if not one.done.done():
                one.done.set_result(picture)

    def _tell(self, one: _Waiting, error: BaseException) -> None:
        if not one.done.done():
            one.done.set_exception(error)
