"""What was freed goes back to the system, and errors do not keep what their requests held."""

import asyncio
import base64
import gc
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from inpaint import heap
from inpaint.heap import Trimmer
from inpaint.serve.dialects.paint_http import paint_http
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.service import DeadlinePassed
from tests.unit.data.images import encoded, mask, picture
from tests.unit.serve.fake import FakeService

MB = 2**20


@pytest.fixture
def trims(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry per trim, which is not done."""
    found: list[str] = []
    monkeypatch.setattr(heap, "trim", lambda: found.append("trimmed"))
    return found


SHARES_GIVEN_BACK = """
import psutil
from inpaint import heap

def freed(size):
    blocks = [bytes([1]) * size for _ in range(100)]
    held = psutil.Process().memory_info().rss
    del blocks[1::2]  # each has neighbours that stay
    print((held - psutil.Process().memory_info().rss) / (50 * size))
    heap.trim()
    print((held - psutil.Process().memory_info().rss) / (50 * size))

heap.give_back(heap.PHOTOS)
freed(400_000)
heap.give_back(heap.TENSORS)
freed(400_000)
"""


def test_freed_blocks_between_others_that_live_on_go_back_at_once_or_when_trimmed() -> None:
    done = subprocess.run([sys.executable, "-c", SHARES_GIVEN_BACK], capture_output=True, text=True, check=True)
    photos, trimmed, tensors, tensors_trimmed = map(float, done.stdout.split())
    assert min(photos, trimmed, tensors_trimmed) > 0.9
    assert tensors < 0.5


PAGES_TAKEN_ANEW = """
import resource, sys, threading
import torch
from inpaint.device import use_cores

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(10 * 2**20).add(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def work():
    use_cores(1)
    faults()
    print(faults())

if sys.argv[1] == "thread":
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
else:
    work()
"""


@pytest.mark.parametrize("where", ["main", "thread"])
def test_tensors_of_a_training_are_in_memory_that_the_process_had(where: str) -> None:
    """Each of the 40 has 10,240 pages, which the system zeroes where they are new."""
    done = subprocess.run([sys.executable, "-c", PAGES_TAKEN_ANEW, where], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000


def test_it_is_trimmed_once_after_work_and_now_and_then_in_a_long_one(trims: list[str]) -> None:
    clock = SimpleNamespace(now=0.0)

    async def look_on() -> list[int]:
        trimmer, seen = Trimmer(lambda: clock.now), []
        for now, work, rests in [
            (2, 0, True),
            (4, 1, False),
            (6, 9, True),
            (8, 9, True),
            (60, 10, False),
            (70, 11, False),
        ]:
            clock.now = now
            await trimmer.look(work, rests=rests)
            seen.append(len(trims))
        return seen

    assert asyncio.run(look_on()) == [0, 0, 1, 1, 1, 2]


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What only the garbage collector would find is kept."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_refused_request_keeps_neither_its_body_nor_its_photo(no_collector: None) -> None:
    service = FakeService()
    app = paint_http(service, HttpSettings(max_body_bytes=6 * MB))

    async def post(path: str, body: bytes, content_type: bytes) -> int:
        parts = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return parts.pop() if parts else await asyncio.Event().wait()

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(b"content-type", content_type)]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        await app(scope, receive, send)
        return int(sent[0]["status"])

    files = {"image": picture(1024, 1024), "mask": mask(1024, 1024)}
    files = {name: base64.b64encode(encoded(one)).decode() for name, one in files.items()}
    whole = json.dumps({**files, "prompt": "a mug", "category": "CDP_FOOD"}).encode()
    bodies = [b'{"image": "' + b"A" * 4 * MB, b" " * 7 * MB, whole]

    async def ask() -> list[int]:
        return [await post("/paint", body, b"application/json") for body in bodies]

    service.fails = DeadlinePassed("too late")
    assert asyncio.run(ask()) == [400, 413, 408]
    service.reset()
    service.fails = DeadlinePassed("too late")
    tracemalloc.start()
    try:
        asyncio.run(ask())
        service.reset()
        deadline = time.monotonic() + 10
        while tracemalloc.get_traced_memory()[0] > MB:  # the thread that has parsed it lets go last
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        tracemalloc.stop()
