"""The memory of a process: what one of the service has no use for is found and goes back to the system; one that works
to an end, as trainings do, keeps what it had for what comes next.

Cycles of Python objects are found by its garbage collector, whose full runs are as rare as there are many objects:
those of the modules are left out. glibc (where it is another malloc, nothing is done) raises by itself, up to 32 MB,
the size from which a block is memory of its own and goes back when it is freed. Smaller ones lie in arenas, between
blocks that live on: of bodies, photos and tensors that come and go in many sizes, an arena keeps the most that it ever
held, and more with every new mixture.
"""

import asyncio
import ctypes
import gc
import time
from collections.abc import Callable
from functools import cache
from typing import Any

PHOTOS = 256 * 2**10
"""Bytes from which a block goes back at once where large ones are few beside the work on them: bodies and photos."""
TENSORS = 32 * 2**20
"""The same where each step asks for the same blocks again, on CPUs: getting them anew takes a tenth of its time."""
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(PHOTOS), "MALLOC_ARENA_MAX": "4"}
"""For Ray's own processes, Serve's proxies among them, which read all bodies: of `ray start` or `serve run`."""
KEEPS = {"MALLOC_ARENA_MAX": "1", **dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(2**30))}
"""`keep` for a process that is yet to start, with one arena for all its threads."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_BUSY_S = 60.0


@cache
def _glibc() -> Any:
    """The C library, where it is glibc; else None."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


def give_back(from_bytes: int) -> None:
    """From now on blocks of this size and larger ones go back when they are freed."""
    if _glibc() is not None:
        _glibc().mallopt(_M_MMAP_THRESHOLD, from_bytes)
        # Kept at an arena's end: twice as much, as where glibc chooses both.
        _glibc().mallopt(_M_TRIM_THRESHOLD, min(2 * from_bytes, 2**31 - 1))


def keep() -> None:
    """From now on what is freed stays for what is allocated next, and the process as large as it ever was. For tensors
    of 32 MB and more, as those of a training on CPUs are: each would else be zeroed anew, page by page."""
    give_back(2**30)


def started() -> None:
    """All that is there now stays: the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()


def trim() -> None:
    """All free pages go back, also those between blocks in use: some 10 ms of a process of 500 MB."""
    gc.collect()
    if _glibc() is not None:
        _glibc().malloc_trim(0)


class Trimmer:
    """Trims when a process rests after work, and once a minute where it never rests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._trimmed, self._work = clock(), 0.0

    async def look(self, work: float, *, rests: bool) -> None:
        """Call every few seconds. Args: work: done since the start, by any measure. rests: nothing is to be done."""
        if work != self._work and (rests or self._clock() - self._trimmed >= _BUSY_S):
            self._trimmed, self._work = self._clock(), work
            await asyncio.to_thread(trim)
