"""A bar with an ETA for whatever lasts over a few seconds; plain lines where there is no terminal (job logs)."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY = 10.0
"""Seconds between lines where there is no terminal."""
SPEED_OVER = 600.0
"""Seconds back, over which the speed is taken that says how long the rest will last."""


class ProgressBar:
    """Shows how much of one thing is done, on stderr. A context manager. What comes first tells nothing of the speed:
    it took a start, too, or was there before."""

    def __init__(
        self,
        title: str,
        *,
        done: int = 0,
        total: int | None = None,
        text: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self._clock = title, clock
        self._console = Console(stderr=True)
        self._printed = clock()
        self._unprinted: str | None = None
        self._warned: set[str] = set()
        names = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[text]}", markup=False)
        columns = (names[0], BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), names[1])
        self._bar = Progress(*columns, console=self._console, get_time=clock, speed_estimate_period=SPEED_OVER)
        self._task = self._bar.add_task(title, completed=done, total=total, text=text)

    def __enter__(self) -> "ProgressBar":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()
        elif self._unprinted is not None:
            self._print(self._unprinted)

    def show(self, done: int, total: int, text: str = "") -> None:
        """`done` of `total`, and what else is to be said."""
        self._bar.update(self._task, completed=done, total=total, text=text)
        if self._console.is_terminal:
            return
        (task,) = self._bar.tasks
        left = "ETA unknown" if task.time_remaining is None else f"{task.time_remaining:.0f} s left"
        self._unprinted = f"{self.title}  {done}/{total}  {text}  {left}"
        if self._clock() - self._printed > PLAIN_EVERY:
            self._print(self._unprinted)

    def warn(self, message: str) -> None:
        """A line above the bar; a message that came before is not repeated."""
        if message not in self._warned:
            self._warned.add(message)
            self._console.print(f"warning: {self.title}: {message}", highlight=False, markup=False, style="yellow")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._printed = self._clock()
        self._unprinted = None
