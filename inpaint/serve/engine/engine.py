"""The painting engine: one base, one loop; every tick advances rows of any order, adapter, step and sampler together.

Guaranteed: the picture of an order does not depend on what shares its ticks and is the one that `Painter` gives with
the adapter applied and the same ControlNet (1e-3 in [0, 1] before paste-back, float32); kept pixels come back bit for
bit, or the order fails; an order whose generator is closed or whose time is up leaves before the next tick; what one
order does wrong fails that order alone: where a step of several raises, whatever it is, halves of them are tried until
it is found, and the others get the pictures that they would have had; only where the base cannot do a step for nobody
either does the loop end. Who asks the loop for something after its end is told so; and what
`inpaint.serve.engine.scheduler` guarantees.
Not covered: a limit of the queue (whoever admits orders counts them).

The loop's thread owns all state; other threads post to its mail. Photos are read, pictures pasted back and adapters
loaded by threads of their own.
"""

import asyncio
import contextlib
import logging
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from inpaint.errors import InpaintError
from inpaint.paint.crop import WorkingImage
from inpaint.serve.engine.executor import Executor, is_memory, paste
from inpaint.serve.engine.scheduler import Event, Job, Outcome, Scheduler
from inpaint.serve.engine.side_stream import StreamEvent
from inpaint.serve.engine.slot_table import Loan
from inpaint.serve.service import AdapterUse, Begun, DeadlinePassed, Painted, PaintOrder, Preview, Unpaintable

logger = logging.getLogger(__name__)
T = TypeVar("T")
ItemT = TypeVar("ItemT")
_LONGEST_WAIT_S = 60.0


class EngineBroken(RuntimeError):
    """The engine's loop has ended or is stuck; nothing that it was given will be painted."""


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """Orders, adapters and work that are here now, and what was counted since the start (docs/serving.md)."""

    queued: int = 0
    running: int = 0
    remaining_work: float = 0.0
    """U-Net rows, weighed by their pixels."""
    resident_adapters: int = 0

    ticks: int = 0
    rows: int = 0
    """U-Net rows of all ticks, padding left out."""
    painted: int = 0
    failed: int = 0
    cancelled: int = 0
    wasted_steps: int = 0
    """Denoising steps of orders that then failed or were cancelled."""
    adapter_loads: int = 0
    adapter_evictions: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """See `Executor.seconds`."""


class Engine:
    """Paints orders with one base, which it must have for itself. `start` it first."""

    def __init__(self, executor: Executor) -> None:
        self.info, self.settings = executor.info, executor.settings
        self._executor = executor
        self._scheduler = Scheduler(executor.settings)
        self._encoding: list[tuple[list[Job], StreamEvent]] = []
        self._counts: Counter[str] = Counter()
        self._threads = ThreadPoolExecutor(self.settings.threads, thread_name_prefix="engine-pictures")
        self._loaders = ThreadPoolExecutor(self.settings.loaders, thread_name_prefix="engine-adapters")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._mail: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._post_lock = threading.Lock()
        self._is_ready = threading.Event()
        self._is_closing = self._has_ended = False
        self._error: BaseException | None = None
        self._turned = time.monotonic()
        """When the loop last began a turn: its heartbeat."""

    def start(self) -> None:
        """Starts the loop, and waits until it can paint: until all is compiled that shall be.

        Raises EngineBroken: it never will.
        """
        self._thread.start()
        self._is_ready.wait()
        if self._error is not None:
            self._thread.join()
            raise self._broken()

    def close(self, drain: bool) -> None:
        """Ends the loop and waits for it; with `drain` what was ordered is painted first, else it fails.

        Blocks: call it off the asyncio loop that reads the pictures.
        """
        self._mail.put(partial(self._close, drain))
        self._thread.join()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._loaders.shutdown(wait=False, cancel_futures=True)

    async def paint(self, order: PaintOrder) -> AsyncGenerator[Begun | Preview | Painted, None]:
        """What comes of the order, its picture last. Closing the generator takes it out before the next tick.

        Raises:
            DeadlinePassed: its `timeout_s` has passed.
            InpaintError: it cannot be painted on this base, or an adapter of it cannot be loaded (AdapterGone).
            Unpaintable: it failed alone, and the base was found to work.
            EngineBroken: the loop has ended.
        """
        events, tell = _answers()
        job = Job(order=order, arrived=time.monotonic(), tell=tell)
        self._post(partial(self._receive, job))
        event: Event | None = None
        try:
            while not isinstance(event, Painted):
                event = await events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            self._mail.put(partial(self._leaves, job, "cancelled"))
            # An error that came through this frame would keep itself, and the photo.
            del event

    async def check(self, timeout_s: float) -> None:
        """Lets the loop do a step of the U-Net; that it is at a turn which takes longer than the check is no fault.

        Raises:
            EngineBroken: the loop has ended, or has been at one turn for `longest_turn_s`.
            Exception: what the step raised, which ends the loop unless memory ran out.
        """
        answers, tell = _answers()
        self._post(partial(self._check, tell))
        try:
            error = await asyncio.wait_for(answers.get(), timeout_s)
        except TimeoutError as late:
            at_it = time.monotonic() - self._turned
            if at_it < self.settings.longest_turn_s:
                return
            raise EngineBroken(f"the engine's loop has been at one turn for {at_it:.1f} s") from late
        if error is not None:
            raise error

    def resident(self) -> frozenset[str]:
        """Digests of the adapters that are loaded."""
        return self._scheduler.table.resident

    def stats(self) -> EngineStats:
        """How it stands; from any thread."""
        jobs, table = list(self._scheduler), self._scheduler.table
        running = sum(job.started is not None for job in jobs)
        return EngineStats(
            **self._counts.copy(),
            queued=len(jobs) - running,
            running=running,
            resident_adapters=len(table.resident),
            adapter_evictions=table.evictions,
            remaining_work=sum(job.work * (1 - job.step / job.steps) for job in jobs),
            seconds=dict(self._executor.seconds),
        )

    # Between the threads.

    def _post(self, message: Callable[[], object]) -> None:
        """For the loop to do, if need be after its last turn. Raises EngineBroken where it never will."""
        with self._post_lock:
            if self._has_ended:
                raise self._broken()
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

    def _broken(self) -> EngineBroken:
        reason = "was closed" if self._error is None else f"ended with {self._error!r}"
        return EngineBroken(f"the engine's loop {reason}: start another engine")

    # What is posted to the loop.

    def _receive(self, job: Job) -> None:
        try:
            if self._is_closing:
                raise self._broken()
            self._scheduler.add(job)
        except (EngineBroken, InpaintError) as error:
            job.tell(error)

    def _check(self, tell: Callable[[BaseException | None], None]) -> None:
        try:
            if self._has_ended:
                raise self._broken()
            self._executor.check()
            tell(None)
        except BaseException as error:
            tell(error)
            if not (isinstance(error, EngineBroken) or is_memory(error)):
                raise

    def _close(self, drain: bool) -> None:
        self._is_closing = True
        if not drain:
            self._fail(list(self._scheduler), self._broken())

    # The loop.

    def _run(self) -> None:
        try:
            with self._executor.working():
                for _ in self._executor.warm():
                    self._turned = time.monotonic()
                self._is_ready.set()
                while not self._is_closing or len(self._scheduler):
                    self._read_mail(self._turn())
        finally:
            self._error = sys.exception()
            self._is_ready.set()
            with self._post_lock:
                self._has_ended = True
            self._close(drain=False)
            self._read_mail(0.0)

    def _read_mail(self, patience: float) -> None:
        """Does what was posted; waits up to `patience` seconds for the first."""
        with contextlib.suppress(queue.Empty):
            self._mail.get(timeout=patience)()
            while True:
                self._mail.get_nowait()()

    def _turn(self) -> float:
        """Some of all that there is to do. Seconds that the next turn may wait for mail."""
        self._turned = time.monotonic()
        for job in self._scheduler.expired(time.monotonic()):
            self._fail([job], DeadlinePassed(f"order {job.order.id} took longer than {job.order.timeout_s} s"))
        self._admit()
        self._executor.forget(self._scheduler.shapes())
        if any([self._encode(), self._step(), self._decode()]):
            return 0.0
        return max(0.001, min(self._scheduler.next_deadline() - time.monotonic(), _LONGEST_WAIT_S))

    def _admit(self) -> None:
        for job, loans in self._scheduler.admit():
            job.tell(Begun())
            uses = {use.digest: use for use in job.order.adapters}
            for loan in loans:
                load, loaded = partial(self._load, loan, uses[loan.digest]), partial(self._loaded, loan)
                self._later(self._loaders, load, loaded, partial(self._load_failed, loan))
            read = partial(self._executor.read, job.order)
            self._later(self._threads, read, partial(self._have_read, job), partial(self._fail, [job]))

    def _have_read(self, job: Job, image: WorkingImage) -> None:
        job.image, job.shape = image, image.shape

    def _load(self, loan: Loan, use: AdapterUse) -> Any:
        """In another thread; None where nobody waits for it any more."""
        return self._executor.load(use) if loan.users else None

    def _loaded(self, loan: Loan, adapter: Any) -> None:
        def put(_: object) -> None:
            if loan.users and adapter is not None:
                self._executor.put(loan.slot, adapter)
                loan.is_loaded = True
                self._counts["adapter_loads"] += 1

        self._separately([loan], put, lambda _, error: self._load_failed(loan, error))

    def _load_failed(self, loan: Loan, error: BaseException) -> None:
        self._fail([job for job in self._scheduler if loan in job.loans], error)

    def _encode(self) -> bool:
        """Encodes text and pictures of the next jobs."""
        jobs = self._scheduler.to_encode()
        self._encoding += self._separately(jobs, self._executor.encode, self._fail)
        while self._encoding and self._encoding[0][1].query():
            self._scheduler.encoded(self._encoding.pop(0)[0])
        return bool(jobs or self._encoding)

    def _step(self) -> bool:
        """One step of the next batch."""
        batch = self._scheduler.to_step(time.monotonic())
        parts = self._separately(batch, self._executor.advance, self._fail)
        for jobs, (latents_BChw, clean_BChw) in parts:
            self._counts["ticks"] += 1
            self._counts["rows"] += sum(job.unet_rows for job in jobs)
            for picture in self._scheduler.stepped(jobs):
                place = jobs.index(picture.job)
                picture.content = (latents_BChw if picture.index is None else clean_BChw)[place : place + 1]
        if len(parts) > 1 and sum(len(jobs) for jobs, _ in parts) == len(batch):
            self._scheduler.narrow([jobs for jobs, _ in parts], time.monotonic())
        return bool(batch)

    def _decode(self) -> bool:
        """Decodes the next pictures; they are pasted back by other threads."""

        def failed(pictures: list[Outcome], error: BaseException) -> None:
            self._fail([picture.job for picture in pictures], error)

        taken = self._scheduler.to_decode()
        for pictures, (images_B3HW, done) in self._separately(taken, self._executor.decode, failed):
            for picture, image_3HW in zip(pictures, images_B3HW, strict=True):
                work = partial(paste, picture, image_3HW, done)
                self._later(self._threads, work, partial(self._pasted, picture), partial(self._fail, [picture.job]))
        return bool(taken)

    def _pasted(self, picture: Outcome, event: Event) -> None:
        picture.content = event
        if picture.job not in self._scheduler:
            return
        for ready in self._scheduler.finished(picture):
            self._counts["painted"] += ready.index is None
            # Last, so that who gets it sees an engine that has let the order go.
            picture.job.tell(ready.content)

    def _separately(
        self, items: list[ItemT], work: Callable[[list[ItemT]], T], failed: Callable[[list[ItemT], BaseException], None]
    ) -> list[tuple[list[ItemT], T]]:
        """What came of the work on items together, or on parts of them where that raises: on halves, with what memory
        there was to free, down to single ones. `failed` is told of each that fails alone, too. Raises what a step of a
        blank picture raises after that, for then the fault is not the item's."""
        done, to_do = [], [items] if items else []
        while to_do:
            part = to_do.pop(0)
            try:
                done.append((part, work(part)))
                continue
            except Exception as error:
                logger.exception("%d of %d failed", len(part), len(items))
                # Without its frames, which hold tensors.
                reason = error.with_traceback(None)
            self._executor.recover()
            if len(part) > 1:
                to_do[:0] = [part[: len(part) // 2], part[len(part) // 2 :]]
            elif part is items:
                to_do.append([*part])
            else:
                if not is_memory(reason):
                    self._executor.check()
                failed(part, reason)
        return done

    def _fail(self, jobs: Iterable[Job], error: BaseException) -> None:
        for job in jobs:
            if self._leaves(job, "failed"):
                job.tell(error if isinstance(error, (InpaintError, EngineBroken)) else _unpaintable(job, error))

    def _leaves(self, job: Job, why: str) -> bool:
        """Takes a job out before its end; False where it is not here any more."""
        if job not in self._scheduler:
            return False
        self._counts[why] += 1
        self._counts["wasted_steps"] += job.step
        self._scheduler.remove(job)
        return True


def _unpaintable(job: Job, error: BaseException) -> Unpaintable:
    reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
    way_out = "; ask for a smaller size" if is_memory(error) else ""
    return Unpaintable(f"order {job.order.id} fails, also when nothing is painted beside it: {reason}{way_out}")


def _answers() -> tuple["asyncio.Queue[Any]", Callable[[Any], None]]:
    """A queue of this asyncio loop, and what puts something into it from any thread."""
    loop, answers = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def tell(answer: Any) -> None:
        # A closed asyncio loop means that nobody waits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(answers.put_nowait, answer)

    return answers, tell
