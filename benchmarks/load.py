"""An open-loop load: requests leave when a seeded Poisson process says so, whether or not earlier ones were answered.

One asyncio loop, plain sockets, bodies made beforehand: what it costs must not be taken from the server's cores.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Target:
    """One service."""

    port: int
    path: str


@dataclass(frozen=True)
class Load:
    """What came of one load."""

    offered: float
    """Requests per second sent."""
    seconds_N: np.ndarray
    """From the moment a request was due to its whole answer."""
    done_at_N: np.ndarray
    """Seconds after the start at which each was answered."""
    failed: int
    """Not answered with 200."""

    def percentile(self, share: float) -> float:
        """Seconds within which this share of the requests was answered; infinite where too many failed."""
        answered = np.concatenate([self.seconds_N, np.full(self.failed, np.inf)])
        return float(np.quantile(answered, share, method="higher")) if answered.size else float("inf")

    def throughput(self, begin: float, end: float) -> float:
        """Answers per second between two moments after the start."""
        return float(((self.done_at_N >= begin) & (self.done_at_N < end)).sum() / (end - begin))


def http_request(target: Target, fields: dict[str, object]) -> bytes:
    """A whole HTTP/1.1 request, as it goes over the wire."""
    body = json.dumps(fields).encode()
    head = f"POST {target.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def arrivals(rate: float, seconds: float, seed: int) -> np.ndarray:
    """Moments (s) of a Poisson process of `rate` per second."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=int(rate * seconds * 2) + 50)
    times = np.cumsum(gaps)
    return times[times < seconds]


def run_load(
    target: Target, requests: Sequence[bytes], rate: float, seconds: float, *, seed: int, patience: float
) -> Load:
    """Send `requests` in turn for `seconds`; what is not answered `patience` seconds after the last one has failed."""
    return asyncio.run(_run(target, requests, rate, seconds, seed, patience))


async def _run(
    target: Target, requests: Sequence[bytes], rate: float, seconds: float, seed: int, patience: float
) -> Load:
    begin = time.monotonic()
    due = arrivals(rate, seconds, seed)
    latencies: list[float] = []
    done: list[float] = []

    async def one(number: int, moment: float) -> None:
        await asyncio.sleep(begin + moment - time.monotonic())
        if await _send(target.port, requests[number % len(requests)]):
            now = time.monotonic() - begin
            latencies.append(now - moment)
            done.append(now)

    tasks = [asyncio.create_task(one(number, float(moment))) for number, moment in enumerate(due)]
    await asyncio.wait(tasks, timeout=seconds + patience)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return Load(len(due) / seconds, np.array(latencies), np.array(done), len(due) - len(done))


async def _send(port: int, request: bytes) -> bool:
    """Whether it was answered with 200."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(request)
        return (await reader.read()).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
    finally:
        writer.close()
