"""Jobs that wait, in their turns: each key's share of the work that is let in is equal, however much it has waiting.

Start-time fair queueing (Goyal, Vin and Cheng 1996, eq. 4 and 5), but work is charged when a job is let in, so that who
leaves before costs its key nothing. Guaranteed: while two keys have jobs waiting, what was let in of one is ahead of
the other's by less than their largest jobs together; a key's own jobs come by age; one that had none waiting is owed
nothing for that time. Pure.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inpaint.serve.engine.scheduler import Job


class FairQueue:
    """By key (`PaintOrder.key`) and age."""

    def __init__(self) -> None:
        self._jobs: dict[str, dict[Job, None]] = {}
        self._spent: dict[str, float] = {}
        """Work of each key that was let in, on a clock that all share."""
        self._now = 0.0
        """What the key whose turn it was last had spent before it."""

    def __len__(self) -> int:
        return sum(map(len, self._jobs.values()))

    def __contains__(self, job: "Job") -> bool:
        return job in self._jobs.get(job.order.key, ())

    def __iter__(self) -> "Iterator[Job]":
        """All of them: a copy, from any thread."""
        return iter([job for jobs in list(self._jobs.values()) for job in list(jobs)])

    def add(self, job: "Job") -> None:
        """A job comes."""
        key = job.order.key
        if key not in self._jobs:
            self._jobs[key] = {}
            self._spent[key] = max(self._spent.get(key, 0.0), self._now)
        self._jobs[key][job] = None

    def remove(self, job: "Job") -> None:
        """A job leaves, let in or not."""
        key = job.order.key
        del self._jobs[key][job]
        if not self._jobs[key]:
            del self._jobs[key]

    def in_turn(self) -> "Iterator[Job]":
        """The next ones, as far as they are asked for; what is charged meanwhile counts. None may come or leave."""
        rest = {key: iter(jobs) for key, jobs in self._jobs.items()}
        while rest:
            key = min(rest, key=self._spent.__getitem__)
            job = next(rest[key], None)
            if job is None:
                del rest[key]
            else:
                yield job

    def charge(self, job: "Job") -> None:
        """A job is let in, and to be removed."""
        key = job.order.key
        self._now = self._spent[key]
        self._spent[key] += job.work
