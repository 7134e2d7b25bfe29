"""Who may join the queue: bounded by work, not by requests, with a waiting time that is measured, not guessed."""

import time
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field

from inpaint.serve.service import Overloaded

SHORTEST_RETRY_S, LONGEST_RETRY_S = 1.0, 120.0
"""Bounds of Retry-After: the OpenAI SDK honours no more than 120 s."""
_WINDOW_S = 2.0
_NEWEST_WEIGHT = 0.5


class AdmissionSettings(BaseModel):
    """How long the queue may become."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    queue_per_painter: float = Field(default=4000.0, gt=0)
    """U-Net rows that may be waiting or running per painter; what comes beyond is told when to come back."""
    expected_speed: float = Field(default=100.0, gt=0)
    """U-Net rows per second of a painter, until it is measured."""


class Admission:
    """The work that one ingress has let in, and its fair portion of what the painters may have waiting.

    Guaranteed: an order is admitted where nothing else is waiting, however large it is, so none is refused for ever.
    """

    def __init__(self, settings: AdmissionSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.painters = 1
        self.ingresses = 1
        self.outstanding = 0.0
        """U-Net rows let in and not yet done."""
        self.admitted = 0.0
        self.refused = 0.0
        self._clock = clock
        self._measured: float | None = None
        self._finished = self._busy_s = 0.0
        self._busy_since: float | None = None

    @property
    def limit(self) -> float:
        """Most U-Net rows that this ingress may have outstanding."""
        return self.settings.queue_per_painter * max(1, self.painters) / max(1, self.ingresses)

    @property
    def speed(self) -> float:
        """U-Net rows per second of what this ingress sends out, measured while it had work outstanding."""
        return self._measured or self.settings.expected_speed * max(1, self.painters) / max(1, self.ingresses)

    def admit(self, work: float) -> None:
        """Let `work` rows in.

        Raises:
            Overloaded: they do not fit beside what is outstanding.
        """
        surplus = self.outstanding + work - self.limit
        if surplus > 0 and self.outstanding > 0:
            self.refused += work
            # An order larger than the limit has its turn when all others are done.
            wait = min(surplus, self.outstanding) / self.speed
            retry_after = min(max(wait, SHORTEST_RETRY_S), LONGEST_RETRY_S)
            raise Overloaded(
                f"the queue is full: {self.outstanding:.0f} U-Net rows are waiting, {self.limit:.0f} may, this takes "
                f"{work:.0f}; try again in {retry_after:.0f} s",
                retry_after,
            )
        if self._busy_since is None:
            self._busy_since = self._clock()
        self.admitted += work
        self.outstanding += work

    def leave(self, work: float, *, done: bool) -> None:
        """`work` rows are done, or given up."""
        now = self._clock()
        if self._busy_since is not None:
            self._busy_s += now - self._busy_since
            self._busy_since = now
        self.outstanding = max(0.0, self.outstanding - work)
        if self.outstanding < 1e-6:
            self.outstanding, self._busy_since = 0.0, None
        if done:
            self._finished += work
        if self._busy_s >= _WINDOW_S and self._finished:
            newest = self._finished / self._busy_s
            before = self._measured if self._measured is not None else newest
            self._measured = before + _NEWEST_WEIGHT * (newest - before)
            self._finished = self._busy_s = 0.0
