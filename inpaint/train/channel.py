"""The channel of a run: a small actor through which what workers tell reaches the driver, and the wish to stop reaches
them. Imports ray; part of the wiring."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from inpaint.stopping import StopToken
from inpaint.warned import Warned, Warnings, heard

if TYPE_CHECKING:  # the actor's process starts sooner without torch
    from inpaint.train.console import RunConsole, Told
    from inpaint.train.loop import StepReport

POLL_SECONDS = 0.5


@ray.remote(num_cpus=0)
class RunChannel:
    """The actor. It lives on the driver's machine and ends with the driver."""

    def __init__(self) -> None:
        self._told: list[Told] = []
        self._stop = False
        self._refusal: str | None = None

    def tell(self, *told: Told) -> bool:
        """A worker's side: something for the console; returns whether the run shall stop."""
        self._told += told
        return self._stop

    def hear(self, stop: bool) -> list[Told]:
        """The driver's side: what was told since the last call; `stop` is passed on to the workers."""
        self._stop = self._stop or stop
        told, self._told = self._told, []
        return told

    def refuse(self, reason: str) -> None:
        """A worker found that the run can never succeed."""
        self._refusal = self._refusal or reason

    def refusal(self) -> str | None:
        """Why the run can never succeed, if a worker said so: workers that start then end at once."""
        return self._refusal


def open_channel() -> Any:
    """A channel on this process's machine: elsewhere it could go with a spot machine."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return RunChannel.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


class Exchange:
    """Reports from the first rank to the channel; between steps, without ever waiting for it."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._unanswered: list[ray.ObjectRef] = []

    def __call__(self, report: StepReport) -> bool:
        """Returns whether an answer that has come meanwhile asks to stop."""
        self._unanswered.append(self._channel.tell.remote(report))
        answered, self._unanswered = ray.wait(self._unanswered, num_returns=len(self._unanswered), timeout=0)
        return any(ray.get(answered))

    def flush(self) -> None:
        """Wait until all reports are there."""
        ray.get(self._unanswered)


@contextmanager
def sent_warnings(channel: Any) -> Iterator[None]:
    """Within, this process's own warnings go to the driver's console (cut prompts, a damaged checkpoint, an unread
    row): the first of a kind at once, how many followed at the end. Of a worker that dies the first ones are known."""
    followed = Warnings()

    def hear(warned: Warned) -> None:
        is_first = warned.kind not in followed.kinds
        followed.add(replace(warned, count=warned.count - is_first))
        if is_first:
            channel.tell.remote(replace(warned, count=1))

    try:
        with heard(hear):
            yield
    finally:
        ray.get(channel.tell.remote(*(kind for kind in followed.kinds.values() if kind.count)))


@contextmanager
def watched(
    channel: Any, console: RunConsole, stop: StopToken, watch: Callable[[StepReport], None] | None
) -> Iterator[None]:
    """Within, a thread shows what comes through the channel and passes `stop` on to it. Where it fails, the workers are
    asked to stop, and its error is raised at the end."""
    ended = threading.Event()

    def poll() -> None:
        for told in ray.get(channel.hear.remote(stop.requested)):
            console.show(told)
            if watch is not None and isinstance(told, dict):
                watch(told)
            elif watch is not None and isinstance(told, tuple):
                samples, _, figures = told
                watch({"samples": samples, **figures})

    def keep_polling() -> None:
        while not ended.wait(POLL_SECONDS):
            poll()

    def end_the_run(polling: Future[None]) -> None:
        if polling.exception() is not None:
            channel.hear.remote(True)

    with ThreadPoolExecutor(1) as thread:
        polling = thread.submit(keep_polling)
        polling.add_done_callback(end_the_run)
        try:
            yield
        finally:
            ended.set()
            polling.result()
            poll()
            console.sum_up()
