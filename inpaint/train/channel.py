"""The channel of a run: a small actor through which the first worker's figures, warnings, pictures and refusals reach
the driver, and the wish to stop reaches the worker. Imports ray; part of the wiring."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from inpaint.stopping import StopToken

if TYPE_CHECKING:  # the actor's process starts sooner without torch
    import numpy as np

    from inpaint.train.console import RunConsole
    from inpaint.train.loop import StepReport

POLL_SECONDS = 0.5


@ray.remote(num_cpus=0)
class RunChannel:
    """The actor. It lives on the driver's machine and ends with the driver."""

    def __init__(self) -> None:
        self._reports: list[StepReport] = []
        self._warnings: list[str] = []
        self._pictures: list[tuple[int, np.ndarray]] = []
        self._stop = False
        self._refusal: str | None = None

    def exchange(self, reports: list[StepReport]) -> bool:
        """The worker's side: new reports; returns whether the run shall stop."""
        self._reports += reports
        return self._stop

    def warn(self, message: str) -> None:
        """A warning of a worker."""
        self._warnings.append(message)

    def show(self, samples: int, grid: np.ndarray) -> None:
        """Pictures painted at a validation, as one, uint8 H W 3."""
        self._pictures.append((samples, grid))

    def refuse(self, reason: str) -> None:
        """A worker found that the run can never succeed."""
        self._refusal = self._refusal or reason

    def refusal(self) -> str | None:
        """Why the run can never succeed, if a worker said so: then it is not tried again."""
        return self._refusal

    def read(self, stop: bool) -> tuple[list[StepReport], list[str], list[tuple[int, np.ndarray]]]:
        """The driver's side: what came since the last call; `stop` is passed on to the worker."""
        self._stop = self._stop or stop
        taken = self._reports, self._warnings, self._pictures
        self._reports, self._warnings, self._pictures = [], [], []
        return taken


def open_channel() -> Any:
    """A channel on this process's machine: elsewhere it could go with a spot machine."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return RunChannel.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


class Exchange:
    """Reports from the first rank to the channel; between steps, without ever waiting for it."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._answer: ray.ObjectRef | None = None
        self._unsent: list[StepReport] = []

    def stop_wished(self) -> bool:
        """Whether the run shall stop already; waits for the answer, so it is for before the first step."""
        return ray.get(self._channel.exchange.remote([]))

    def __call__(self, report: StepReport) -> bool:
        """Returns whether the latest answer asks to stop."""
        self._unsent.append(report)
        stop = False
        if self._answer is not None:
            if not ray.wait([self._answer], timeout=0)[0]:
                return False
            stop = ray.get(self._answer)
        self._answer = self._channel.exchange.remote(self._unsent)
        self._unsent = []
        return stop

    def flush(self) -> None:
        """Send what is left, and wait until it is there."""
        ray.get(self._channel.exchange.remote(self._unsent))
        self._unsent = []


def send_warnings(channel: Any) -> None:
    """This process's own warnings go to the driver's console: a cut prompt, a damaged checkpoint, an unread row."""

    def send(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, UserWarning):
            channel.warn.remote(str(message))

    warnings.showwarning = send


@contextmanager
def watched(
    channel: Any, console: RunConsole, stop: StopToken, watch: Callable[[StepReport], None] | None
) -> Iterator[None]:
    """Within, a thread shows what comes through the channel and passes `stop` on to it."""
    ended = threading.Event()

    def poll() -> None:
        reports, messages, pictures = ray.get(channel.read.remote(stop.requested))
        for report in reports:
            console.show(report)
            if watch is not None:
                watch(report)
        for message in messages:
            console.bar.warn(message)
        for samples, grid in pictures:
            console.picture(samples, grid)

    def keep_polling() -> None:
        while not ended.wait(POLL_SECONDS):
            poll()

    thread = threading.Thread(target=keep_polling, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        poll()
