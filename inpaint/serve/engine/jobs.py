"""Orders inside the engine: where each stands, and the way its pictures take to whoever asked."""

import asyncio
import contextlib
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

from inpaint.paint.crop import WorkingImage
from inpaint.paint.denoise import DenoisingRow
from inpaint.serve.engine.prompt_encoder import Prompt
from inpaint.serve.service import Painted, PaintOrder, Preview

Event = Preview | Painted | BaseException


class Sink:
    """Hands events from the engine's loop to a coroutine on an asyncio loop."""

    def __init__(self) -> None:
        """Belongs to the asyncio loop that it is made on."""
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """From any thread."""
        # A closed asyncio loop means that nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def get(self) -> Event:
        """The next event."""
        return await self._events.get()


@dataclass(eq=False, kw_only=True)
class Job:
    """One order on its way. Owned by the engine's loop."""

    order: PaintOrder
    sink: Sink
    arrived: float = field(default_factory=time.monotonic)
    passed: int = 0
    """Orders that came later and were let in before it, while it waited for a slot."""
    holds: bool = False
    """Whether it holds its adapters."""
    scene: WorkingImage | None = None
    row: DenoisingRow | None = None
    started: float | None = None
    """When it took its first place in a tick."""
    ticks: int = 0
    rows_seen: int = 0
    """U-Net rows of all its ticks."""
    previews_sent: int = 0
    """To be decoded."""
    previews_handed: int = 0
    """To the asker."""
    pictures: deque[Future[Event]] = field(default_factory=deque)
    """Being pasted, in the order in which they are to be handed over."""

    @property
    def deadline(self) -> float:
        """Monotonic; infinite without a timeout."""
        return float("inf") if self.order.timeout_s is None else self.arrived + self.order.timeout_s

    @property
    def digests(self) -> tuple[str, ...]:
        """Of its adapters."""
        return tuple(use.digest for use in self.order.adapters)

    @property
    def unet_rows(self) -> int:
        """What a step of it costs."""
        return 2 if self.order.request.sampling.is_guided else 1

    @property
    def steps_left(self) -> int:
        """Steps to take."""
        if self.row is not None:
            return self.row.left
        return self.order.request.sampling.steps_taken

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """Its texts: the prompt, and the negative prompt where there is guidance."""
        request = self.order.request
        adapters = tuple((use.digest, use.weight) for use in self.order.adapters)
        prompt = Prompt(request.prompt, adapters)
        if not request.sampling.is_guided:
            return (prompt,)
        return prompt, Prompt(request.negative_prompt, adapters, is_negative=True)

    def preview_is_due(self) -> bool:
        """Whether the step just taken is one of those that a preview is wanted of."""
        assert self.row is not None
        total, wanted = len(self.row.trajectory), self.order.previews
        due = self.previews_sent < wanted and self.row.left > 0
        return due and self.row.step >= (self.previews_sent + 1) * total / (wanted + 1)

    def painted(self, image: object) -> Painted:
        """Its end, `image` pasted back and checked."""
        now = time.monotonic()
        started = self.started or now
        return Painted(
            image=image,  # type: ignore[arg-type]
            kept_pixels_changed=0,
            steps=0 if self.row is None else self.row.step,
            batch_rows=self.rows_seen / self.ticks if self.ticks else 0.0,
            queue_s=started - self.arrived,
            paint_s=now - started,
        )
