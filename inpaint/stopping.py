"""The wish to stop: a token of one run, handed to what lasts long. Two runs in one process stop separately."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from inpaint.errors import InpaintError


class StopToken:
    """Asked once, never taken back. May be used from any thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def request(self) -> None:
        """Ask the run to write a checkpoint and end."""
        self._event.set()

    @property
    def requested(self) -> bool:
        """Whether it was asked."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise InpaintError where it was asked: for the parts of a run around its trainings."""
        if self.requested:
            raise InpaintError("stopped as asked; a training can go on with --resume, painting when it is run again")


@contextmanager
def stop_on_signals() -> Iterator[StopToken]:
    """Within, SIGTERM or Ctrl-C asks the token's run to stop; a second one ends the process. Main thread only."""
    token = StopToken()

    def request(number: int, frame: object) -> None:
        token.request()
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield token
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
