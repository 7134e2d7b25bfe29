"""A thread that owns its state: it takes turns at its work, and does what other threads post to it in between.

Guaranteed: what is posted is done on the thread, if need be after the last turn, or `post` has raised EngineBroken.
"""

import queue
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

T = TypeVar("T")


class EngineBroken(RuntimeError):
    """The engine's loop has ended or is stuck; nothing that it was given will be painted."""


class LoopThread(ABC):
    """Takes turns until it is done, or until a turn raises."""

    def __init__(self) -> None:
        self.has_ended = False
        self._error: BaseException | None = None
        self._mail: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._post_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    @abstractmethod
    def _turn(self) -> float | None:
        """Some of the work; returns the seconds that the next turn may wait: 0 not at all, None for what is posted."""

    @abstractmethod
    def _is_done(self) -> bool:
        """Whether the last turn has been taken."""

    @abstractmethod
    def _give_up(self) -> None:
        """Called after the last turn, before what has been posted by then is done."""

    def start(self) -> None:
        """Starts the loop."""
        self._thread.start()

    def broken(self) -> EngineBroken:
        """What is said to who comes too late."""
        reason = "was closed" if self._error is None else f"ended with {self._error!r}"
        return EngineBroken(f"the engine's loop {reason}: start another engine")

    def _post(self, message: Callable[[], None]) -> None:
        """For the loop to do. Raises EngineBroken where it has ended and never will."""
        with self._post_lock:
            if self.has_ended:
                raise self.broken()
            self._mail.put(message)

    def _later(
        self,
        threads: ThreadPoolExecutor,
        work: Callable[[], T],
        then: Callable[[T], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Work in another thread, and `then(its result)` or `failed(its error)` on the loop."""

        def post(future: "Future[T]") -> None:
            if not future.cancelled():
                error = future.exception()
                self._mail.put(partial(then, future.result()) if error is None else partial(failed, error))

        threads.submit(work).add_done_callback(post)

    def _run(self) -> None:
        try:
            self._take_turns()
        finally:
            self._error = sys.exception()
            with self._post_lock:
                self.has_ended = True
            self._give_up()
            while not self._mail.empty():
                self._mail.get()()

    def _take_turns(self) -> None:
        while not self._is_done():
            self._read_mail(self._turn())

    def _read_mail(self, patience: float | None) -> None:
        """Does what was posted; waits up to `patience` seconds for the first."""
        try:
            message = self._mail.get(timeout=patience) if patience != 0.0 else self._mail.get_nowait()
            while True:
                message()
                message = self._mail.get_nowait()
        except queue.Empty:
            return
