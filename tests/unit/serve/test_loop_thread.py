"""The engine's thread: what is posted to it is done there, also after its end, or who posts is told."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from inpaint.serve.engine.loop_thread import EngineBroken, LoopThread

GUARD_S = 60


class Counting(LoopThread):
    """Waits for what is posted; a posted `stop` ends it, as does an error that a posted `work` raises."""

    def __init__(self) -> None:
        super().__init__()
        self.work: Callable[[], None] | None = None
        self.done: list[tuple[str, str]] = []
        self.stopped = False

    def note(self, what: object) -> None:
        self.done.append((str(what), threading.current_thread().name))

    def stop(self) -> None:
        self.stopped = True

    def _turn(self) -> float | None:
        if self.work is not None:
            self.work()
        return None

    def _is_done(self) -> bool:
        return self.stopped

    def _give_up(self) -> None:
        self.note("gave up")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_was_posted_while_the_last_turn_failed_is_done_after_it() -> None:
    loop, entered, go_on = Counting(), threading.Event(), threading.Event()

    def fail() -> None:
        entered.set()
        assert go_on.wait(GUARD_S)
        raise RuntimeError("the device is gone")

    loop.work = fail
    loop.start()
    assert entered.wait(GUARD_S)
    loop._post(lambda: loop.note("posted"))
    go_on.set()
    loop._thread.join(GUARD_S)
    assert loop.done == [("gave up", "Counting"), ("posted", "Counting")]
    with pytest.raises(EngineBroken, match="the device is gone"):
        loop._post(lambda: None)


def test_results_and_errors_of_other_threads_come_to_the_loop() -> None:
    loop = Counting()
    loop.start()

    def divide(by: int) -> float:
        assert threading.current_thread().name != "Counting"
        return 6 / by

    with ThreadPoolExecutor(1) as threads:
        for by in (3, 0):
            loop._later(threads, lambda by=by: divide(by), loop.note, lambda error: loop.note(type(error).__name__))
    loop._post(loop.stop)
    loop._thread.join(GUARD_S)
    assert loop.done == [("2.0", "Counting"), ("ZeroDivisionError", "Counting"), ("gave up", "Counting")]
    with pytest.raises(EngineBroken, match="was closed"):
        loop._post(lambda: None)
