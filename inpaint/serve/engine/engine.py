"""The painting engine: one base, one loop; every tick advances rows of any order, adapter, step and sampler together.

Guaranteed: the picture of an order does not depend on what shares its ticks and is the one that `Painter` gives with
the adapter applied (1e-3 in [0, 1] before paste-back, float32); kept pixels come back bit for bit, or the order fails;
an order whose generator is closed or whose time is up leaves before the next tick; an adapter in use is never evicted;
what one order does wrong fails that order alone. Not covered: a limit of the queue (whoever admits orders counts them).

The loop's thread owns all state below `_run`; other threads post to its mail. Photos are resized, pictures pasted back
and adapters loaded by threads of their own.
"""

import asyncio
import queue
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch

from inpaint.errors import InpaintError
from inpaint.models.base import Base
from inpaint.models.latents import decode
from inpaint.paint.crop import WorkingImage, pasted, working_image
from inpaint.paint.denoise import start_rows
from inpaint.serve.engine.jobs import Event, Job, Sink
from inpaint.serve.engine.prompt_encoder import PromptEncoder
from inpaint.serve.engine.settings import STAGES, EngineSettings, EngineStats
from inpaint.serve.engine.side_stream import Moment, SideStream
from inpaint.serve.engine.slots import Packed
from inpaint.serve.engine.unet_runner import Bucket, UNetRunner
from inpaint.serve.service import AdapterSource, AdapterUse, DeadlinePassed, Painted, PaintOrder, Preview

MAX_PASSED = 32
"""Orders that may be let in before one that waits for an adapter slot; then it is waited for."""


class EngineBroken(RuntimeError):
    """The engine's loop has ended or is stuck; nothing that it was given will be painted."""


class Engine:
    """Paints orders with one base, which it changes in place and must have for itself."""

    def __init__(self, base: Base, settings: EngineSettings, source: AdapterSource) -> None:
        self.base, self.settings, self.source = base, settings, source
        self._runner = UNetRunner(base, settings)
        self._bank = self._runner.bank
        self._text = PromptEncoder(base, self._bank, cached=settings.prompt_cache)
        self._side = SideStream(base.device)
        self._mail: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._jobs: dict[Job, None] = {}
        self._waiting: deque[Job] = deque()
        self._reading: list[Job] = []
        self._starting: list[tuple[Job, Moment]] = []
        self._buckets: OrderedDict[tuple[int, int], Bucket] = OrderedDict()
        self._finished: deque[tuple[Job, torch.Tensor, bool]] = deque()
        self._last_tick = Moment()
        self._counts = dict.fromkeys(
            ("ticks", "unet_rows", "last_rows", "painted", "failed", "cancelled", "wasted_steps", "loads"), 0
        )
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._ending: BaseException | None = None
        self._is_closing = self._has_ended = False
        self._post_lock = threading.Lock()
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="engine-pictures")
        self._loaders = ThreadPoolExecutor(settings.loaders, thread_name_prefix="engine-adapters")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the loop."""
        self._thread.start()

    def close(self, drain: bool) -> None:
        """Ends the loop and waits for it; with `drain` what was ordered is painted first, else it fails.

        Blocks: call it off the asyncio loop that reads the pictures.
        """
        if not self._has_ended:
            self._post(partial(self._close, drain))
        self._thread.join()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._loaders.shutdown(wait=False, cancel_futures=True)

    async def paint(self, order: PaintOrder) -> AsyncGenerator[Preview | Painted, None]:
        """Previews, then the picture. Closing the generator takes the order out before the next tick.

        Raises:
            DeadlinePassed: its `timeout_s` has passed.
            InpaintError: it cannot be painted on this base, or an adapter of it cannot be loaded (AdapterGone).
            EngineBroken: the loop has ended.
        """
        if not order.request.hole.any():
            yield Painted(
                image=order.request.image.copy(), kept_pixels_changed=0, steps=0, batch_rows=0.0, queue_s=0, paint_s=0
            )
            return
        if len({use.digest for use in order.adapters}) > self.settings.slots:
            raise InpaintError(f"{len(order.adapters)} adapters: this service takes at most {self.settings.slots}")
        job = Job(order=order, sink=Sink())
        self._post(partial(self._receive, job))
        event: Event | None = None
        try:
            while not isinstance(event, Painted):
                event = await job.sink.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            self._mail.put(partial(self._cancel, job))

    def resident(self) -> set[str]:
        """Digests of the adapters that are loaded."""
        return self._bank.resident()

    def stats(self) -> EngineStats:
        """How it stands; from any thread."""
        jobs = list(self._jobs)
        running = sum(job.started is not None for job in jobs)
        return EngineStats(
            **self._counts,
            queued=len(jobs) - running,
            running=running,
            resident=len(self._bank.resident()),
            adapters_in_use=self._bank.in_use(),
            evictions=self._bank.evictions,
            remaining=sum(job.steps_left * job.unet_rows for job in jobs),
            seconds=dict(self._seconds),
        )

    async def check(self, timeout_s: float) -> None:
        """Lets the loop do a forward of the U-Net.

        Raises:
            EngineBroken: the loop has ended, or did not come to it in time.
        """
        answer: Future[None] = Future()
        self._post(partial(self._answer, answer))
        try:
            await asyncio.wait_for(asyncio.wrap_future(answer), timeout_s)
        except TimeoutError as error:
            raise EngineBroken(f"the engine's loop did no forward in {timeout_s} s") from error

    def _broken(self) -> EngineBroken:
        reason = "was closed" if self._ending is None else f"ended with {self._ending!r}"
        return EngineBroken(f"the engine's loop {reason}: start another engine")

    def _post(self, message: Callable[[], None]) -> None:
        """For the loop to do. Raises EngineBroken where it has ended and never will."""
        with self._post_lock:
            if self._has_ended:
                raise self._broken()
            self._mail.put(message)

    def _run(self) -> None:
        try:
            with torch.inference_mode(), self._runner.attention():
                while not (self._is_closing and not self._jobs):
                    did_work = self._work()
                    self._read_mail(0.0 if did_work else self._patience())
        finally:
            self._end(sys.exception())

    def _end(self, error: BaseException | None) -> None:
        self._ending, self._is_closing = error, True
        with self._post_lock:
            self._has_ended = True
        for job in list(self._jobs):
            self._fail(job, self._broken())
        # What was posted before is answered by the same functions, which see the end.
        while not self._mail.empty():
            self._mail.get()()

    def _read_mail(self, patience: float | None) -> None:
        """Does what was posted; waits up to `patience` seconds (None: for ever) for the first."""
        try:
            post = self._mail.get(timeout=patience) if patience != 0.0 else self._mail.get_nowait()
            while True:
                post()
                post = self._mail.get_nowait()
        except queue.Empty:
            return

    def _patience(self) -> float | None:
        """Seconds until the next deadline."""
        first = min((job.deadline for job in self._jobs), default=float("inf"))
        return None if first == float("inf") else max(0.001, first - time.monotonic())

    def _receive(self, job: Job) -> None:
        if self._is_closing:
            job.sink.put(self._broken())
            return
        self._jobs[job] = None
        self._waiting.append(job)

    def _close(self, drain: bool) -> None:
        self._is_closing = True
        if not drain:
            for job in list(self._jobs):
                self._fail(job, self._broken())

    def _answer(self, answer: "Future[None]") -> None:
        if not answer.set_running_or_notify_cancel():
            return
        if self._has_ended:
            answer.set_exception(self._broken())
            return
        self._runner.forward()
        answer.set_result(None)

    def _work(self) -> bool:
        """One turn; whether there was anything to do."""
        self._expire()
        self._admit()
        started, ticked, decoded = self._start_some(), self._tick(), self._decode_some()
        return started or ticked or decoded

    def _expire(self) -> None:
        now = time.monotonic()
        for job in [job for job in self._jobs if job.deadline <= now]:
            self._fail(job, DeadlinePassed(f"order {job.order.id} took longer than {job.order.timeout_s} s"))

    def _admit(self) -> None:
        """Lets orders in while there is room: they take their adapters' slots, oldest first."""
        room = self.settings.max_rows + self.settings.ahead_rows - sum(job.unet_rows for job in self._jobs if job.holds)
        blocked: list[Job] = []
        for job in list(self._waiting):
            if room < job.unet_rows or any(other.passed >= MAX_PASSED for other in blocked):
                return
            missing = self._bank.missing(job.digests)
            if not self._bank.acquire(job.digests):
                blocked.append(job)
                continue
            for other in blocked:
                other.passed += 1
            room -= job.unet_rows
            job.holds = True
            self._waiting.remove(job)
            self._reading.append(job)
            for use in job.order.adapters:
                if use.digest in missing:
                    missing.remove(use.digest)
                    self._later(self._loaders, partial(self._load, use), partial(self._loaded, use))
            self._later(self._threads, partial(self._read, job.order), partial(self._have_read, job))

    def _later(self, threads: ThreadPoolExecutor, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Work in another thread, and `then(its future)` on the loop."""
        threads.submit(work).add_done_callback(lambda future: self._mail.put(partial(then, future)))

    def _read(self, order: PaintOrder) -> WorkingImage:
        # The trajectory is found again when the row starts; here it refuses what cannot be sampled.
        order.request.sampling.trajectory(self._runner.schedule)
        return working_image(self.base.info, order.request)

    def _have_read(self, job: Job, future: "Future[WorkingImage]") -> None:
        error = future.exception()
        if error is not None:
            self._fail(job, error)
        else:
            job.scene = future.result()

    def _load(self, use: AdapterUse) -> tuple[Packed, float]:
        started = time.perf_counter()
        packed = self._bank.pack(self.source.load(use.name, use.digest))
        return packed, time.perf_counter() - started

    def _loaded(self, use: AdapterUse, future: "Future[tuple[Packed, float]]") -> None:
        error = future.exception()
        if error is not None:
            for job in [job for job in self._reading if use.digest in job.digests]:
                self._fail(job, error)
            return
        packed, seconds = future.result()
        self._seconds["load"] += seconds
        self._counts["loads"] += self._bank.put(use.digest, packed)

    def _start_some(self) -> bool:
        """Encodes text and pictures of the oldest orders that are read and whose adapters are there."""
        for job, moment in list(self._starting):
            if moment.is_past():
                self._starting.remove((job, moment))
                self._bucket_of(job).waiting.append(job)
        ready = [job for job in self._reading if job.scene is not None and self._bank.is_ready(job.digests)]
        if not ready:
            return bool(self._starting)
        shape = _scene(ready[0]).shape
        jobs = [job for job in ready if _scene(job).shape == shape][: self.settings.side_rows]
        try:
            with self._side.work() as moment:
                self._start(jobs)
        except torch.OutOfMemoryError as error:
            self._fail_all(jobs, error)
            return True
        for job in jobs:
            self._reading.remove(job)
            self._starting.append((job, moment))
        return True

    def _start(self, jobs: list[Job]) -> None:
        started = time.perf_counter()
        prompts = [prompt for job in jobs for prompt in job.prompts]
        found = dict(zip(prompts, self._text.encode(prompts), strict=True))
        texts = [[found[prompt] for prompt in job.prompts] for job in jobs]
        encoded = time.perf_counter()
        rows = start_rows(
            self.base,
            self._runner.schedule,
            [job.order.request for job in jobs],
            [_scene(job) for job in jobs],
            [text[0] for text in texts],
            [text[1] if len(text) == 2 else None for text in texts],
        )
        for job, row in zip(jobs, rows, strict=True):
            row.uses = tuple((self._bank.slot(use.digest), use.weight) for use in job.order.adapters)
            self._side.hand_over([row.latents_Chw, row.clean_Chw, row.noise_Chw, row.hole_1hw, row.known_Chw])
            for text in filter(None, (row.text, row.negative)):
                self._side.hand_over([text.embeds_BLD, text.pooled_BP])
            job.row = row
        self._seconds["text"] += encoded - started
        self._seconds["prepare"] += time.perf_counter() - encoded

    def _bucket_of(self, job: Job) -> Bucket:
        shape = _scene(job).shape
        if shape not in self._buckets:
            self._buckets[shape] = Bucket(self._runner)
        return self._buckets[shape]

    def _tick(self) -> bool:
        """One step of one bucket; buckets take turns."""
        if not self._buckets:
            return False
        shape, bucket = next(iter(self._buckets.items()))
        self._buckets.move_to_end(shape)
        now = time.monotonic()
        for job in bucket.refill():
            job.started = now
        started, in_unet = time.perf_counter(), self._seconds["unet"]
        try:
            bucket.advance(self._unet)
        except torch.OutOfMemoryError as error:
            self._fail_all(bucket.running, error)
            return True
        self._last_tick.wait()
        self._last_tick = self._side.mark()
        self._seconds["step"] += time.perf_counter() - started - (self._seconds["unet"] - in_unet)
        self._counts["ticks"] += 1
        self._counts["unet_rows"] += bucket.rows
        self._counts["last_rows"] = bucket.rows
        self._collect(bucket)
        return True

    def _unet(self, *arguments: Any, **settings: Any) -> Any:
        started = time.perf_counter()
        output = self._runner.unet(*arguments, **settings)
        self._seconds["unet"] += time.perf_counter() - started
        return output

    def _collect(self, bucket: Bucket) -> None:
        """Hands previews and finished rows on to be decoded."""
        rows = bucket.rows
        for job in bucket.running:
            job.ticks += 1
            job.rows_seen += rows
            if job.preview_is_due():
                job.previews_sent += 1
                self._finished.append((job, bucket.clean(job), True))
        done = [job for job in bucket.running if job.row is not None and job.row.left == 0]
        if done:
            bucket.remove(done)
            self._finished += [(job, job.row.latents_Chw[None], False) for job in done if job.row is not None]
        if not bucket:
            self._buckets = OrderedDict((s, other) for s, other in self._buckets.items() if other is not bucket)

    def _decode_some(self) -> bool:
        """Decodes the oldest pictures of one shape; they are pasted back by other threads."""
        if not self._finished:
            return False
        shape = self._finished[0][1].shape
        alike = [place for place, (_, latents, _) in enumerate(self._finished) if latents.shape == shape]
        places = set(alike[: self.settings.side_rows])
        taken = [entry for place, entry in enumerate(self._finished) if place in places]
        self._finished = deque(entry for place, entry in enumerate(self._finished) if place not in places)
        started = time.perf_counter()
        try:
            with self._side.work() as moment:
                latents_BChw = torch.cat([self._side.borrow(latents) for _, latents, _ in taken])
                images_B3HW = self._side.to_host(decode(self.base, latents_BChw))
        except torch.OutOfMemoryError as error:
            self._fail_all([job for job, _, _ in taken], error)
            return True
        self._seconds["decode"] += time.perf_counter() - started
        for (job, _, is_preview), image_3HW in zip(taken, images_B3HW, strict=True):
            index = len(job.pictures) + job.previews_handed if is_preview else None
            future = self._threads.submit(_finish, job, moment, image_3HW, index)
            job.pictures.append(future)
            future.add_done_callback(partial(self._post_hand_over, job))
        return True

    def _post_hand_over(self, job: Job, _: "Future[Event]") -> None:
        self._mail.put(partial(self._hand_over, job))

    def _hand_over(self, job: Job) -> None:
        """Gives the asker the pictures that are pasted, in their order."""
        while job in self._jobs and job.pictures and job.pictures[0].done():
            future = job.pictures.popleft()
            error = future.exception()
            if error is not None:
                self._fail(job, error)
                return
            event = future.result()
            job.previews_handed += 1
            if isinstance(event, Painted):
                self._counts["painted"] += 1
                self._remove([job])
            # Last, so that who gets it sees an engine that has let the order go.
            job.sink.put(event)

    def _fail(self, job: Job, error: BaseException) -> None:
        if job in self._jobs:
            self._counts["failed"] += 1
            self._waste([job])
            job.sink.put(error)

    def _fail_all(self, jobs: list[Job], error: BaseException) -> None:
        for job in list(jobs):
            self._fail(job, error)

    def _cancel(self, job: Job) -> None:
        if job in self._jobs:
            self._counts["cancelled"] += 1
            self._waste([job])

    def _waste(self, jobs: list[Job]) -> None:
        self._counts["wasted_steps"] += sum(job.row.step for job in jobs if job.row is not None)
        self._remove(jobs)

    def _remove(self, jobs: list[Job]) -> None:
        """Forgets jobs wherever they are, and gives their adapters back."""
        for job in jobs:
            del self._jobs[job]
            if job.holds:
                self._bank.release(job.digests)
        self._waiting = deque(job for job in self._waiting if job not in jobs)
        self._reading = [job for job in self._reading if job not in jobs]
        self._starting = [entry for entry in self._starting if entry[0] not in jobs]
        self._finished = deque(entry for entry in self._finished if entry[0] not in jobs)
        for shape, bucket in list(self._buckets.items()):
            bucket.remove(jobs)
            if not bucket:
                del self._buckets[shape]


def _scene(job: Job) -> WorkingImage:
    assert job.scene is not None, "a job is read before it is started"
    return job.scene


def _finish(job: Job, moment: Moment, image_3HW: torch.Tensor, index: int | None) -> Event:
    """What the asker gets: a preview with this index, or the picture."""
    moment.wait()
    image: np.ndarray = image_3HW.permute(1, 2, 0).numpy()
    result = pasted(job.order.request, _scene(job).window, image)
    return job.painted(result) if index is None else Preview(index=index, image=result)
