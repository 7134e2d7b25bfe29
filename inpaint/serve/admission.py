"""Who may join the queue: bounded by work, not by requests, with a waiting time that is measured, not guessed.

Painters are chosen and scaled for by work, too. Its unit is one U-Net row at the base's own size: one denoising step
of one picture without guidance. So 25 steps with guidance are 50, and at twice the side 200. Encoding and decoding are
left out: that is a few rows' worth. What a ControlNet takes for a row is counted as `CONTROL_WORK` of it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from inpaint.models.base import BaseInfo
from inpaint.paint.crop import working_shape_of
from inpaint.paint.request import PaintRequest
from inpaint.serve.service import Overloaded
from inpaint.serve.shares import Shares

SHORTEST_RETRY_S, LONGEST_RETRY_S = 1.0, 120.0
"""Bounds of Retry-After: the OpenAI SDK honours no more than 120 s."""
_WINDOW_S = 2.0
_NEWEST_WEIGHT = 0.5


CONTROL_WORK = 0.4
"""Of a ControlNet's forward, in U-Net rows: by its FLOPs 0.35 for SD 1.5, 0.45 for SDXL."""


def work_of(request: PaintRequest, base: BaseInfo) -> float:
    """U-Net rows that an order takes, weighed by their pixels; 0 without a hole."""
    if not request.hole.any():
        return 0.0
    high, wide = working_shape_of(base, request)
    rows: float = request.sampling.steps_taken * (1 + request.sampling.is_guided)
    if request.control is not None:
        rows *= 1 + CONTROL_WORK
    return rows * (high * wide) / base.default_size**2


class AdmissionSettings(BaseModel):
    """How long the queue may become."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    queue_per_painter: float = Field(default=4000.0, gt=0)
    """U-Net rows that may be waiting or running per painter; what comes beyond is told when to come back."""
    expected_speed: float = Field(default=100.0, gt=0)
    """U-Net rows per second of a painter, until it is measured."""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What runs now."""

    painters: int = 1
    ingresses: int = 1
    healthy: bool = True
    """Whether painters run, or could be started."""

    @property
    def portion(self) -> float:
        """Painters per ingress; one that is to be started counts."""
        return max(1, self.painters) / max(1, self.ingresses)


@dataclass(frozen=True)
class Ticket:
    """A request that was let in."""

    key: str
    scale: float
    """How much of its work is counted."""


class Admission:
    """The work that one ingress has let in, and its fair portion of what the painters may have waiting.

    Keys have equal shares of it (`Shares`), and one request counts for half of its key's at most: so a request is
    admitted where its key has nothing else waiting, however large it is, and locks neither its own key nor others out.
    """

    def __init__(self, settings: AdmissionSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.capacity = Capacity()
        """To be kept up to date by whoever knows."""
        self.outstanding = 0.0
        """U-Net rows let in and not yet done."""
        self.admitted = 0.0
        self.refused = 0.0
        self._counted = Shares()
        self._clock = clock
        self._measured: float | None = None
        self._finished = self._busy_s = 0.0
        """Since the last measurement: rows done, and seconds with any outstanding."""
        self._since = 0.0

    @property
    def limit(self) -> float:
        """Most U-Net rows that this ingress may have outstanding."""
        return self.settings.queue_per_painter * self.capacity.portion

    @property
    def speed(self) -> float:
        """U-Net rows per second of what this ingress sends out, measured while it had work outstanding."""
        return self._measured or self.settings.expected_speed * self.capacity.portion

    def admit(self, work: float, key: str = "") -> Ticket:
        """Let `work` rows of one request in. Raises Overloaded where they do not fit beside what its key has there."""
        share, held = self._counted.share(key, self.limit), self._counted.held(key)
        counted = min(work, share / 2)
        surplus = held + counted - share
        if surplus > 1e-6:
            self.refused += work
            retry_after = min(max(surplus / (self.speed * share / self.limit), SHORTEST_RETRY_S), LONGEST_RETRY_S)
            raise Overloaded(
                f"the queue is full: {held:.0f} U-Net rows of yours are waiting, {share:.0f} may, this takes "
                f"{work:.0f}; try again in {retry_after:.0f} s",
                retry_after,
            )
        if not self.outstanding:
            self._since = self._clock()
        self.admitted += work
        self.outstanding += work
        self._counted.take(key, counted)
        return Ticket(key, counted / work if work else 0.0)

    def leave(self, ticket: Ticket, work: float, *, done: bool) -> None:
        """`work` rows of a request are done, or given up."""
        self._counted.give_back(ticket.key, ticket.scale * work)
        now = self._clock()
        if self.outstanding:
            self._busy_s += now - self._since
            self._since = now
        left = self.outstanding - work
        self.outstanding = left if left > 1e-6 else 0.0
        if done:
            self._finished += work
        if self._busy_s >= _WINDOW_S and self._finished:
            newest = self._finished / self._busy_s
            before = self._measured if self._measured is not None else newest
            self._measured = before + _NEWEST_WEIGHT * (newest - before)
            self._finished = self._busy_s = 0.0
