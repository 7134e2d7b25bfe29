"""What the engine does next: which jobs hold adapters, are encoded, take a step together, are decoded, have to leave.

Guaranteed: keys take turns by the work that is let in for them (`fair_queue`), each key's jobs by age, and a job that
waits for adapter slots is passed by at most `MAX_PASSED` others;
the shapes take turns, and in each the oldest jobs step, never more than `max_rows` U-Net rows; a job that is to be
alone is let in when no other is here; what has been removed or has expired is in no batch after; a job's previews come
in order and before its picture. So every job comes to its end.

Pure: no torch, no threads, and time is an argument. The engine asks, does what it is told, and says what is done.
"""

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inpaint.errors import InpaintError
from inpaint.serve.engine.fair_queue import FairQueue
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.engine.slot_table import Loan, SlotTable
from inpaint.serve.service import Begun, Painted, PaintOrder, Preview

if TYPE_CHECKING:
    from inpaint.models.low_rank import Uses
    from inpaint.paint.crop import WorkingImage

Event = Begun | Preview | Painted | BaseException

MAX_PASSED = 32
"""Jobs that may be let in before one that waits for an adapter slot; then it is waited for."""

NARROW_S = 60.0
"""For so long no more rows of a shape step together than could, then it is tried again."""


class Stage(enum.Enum):
    """Where a job stands."""

    WAITING = enum.auto()
    """For room, and for slots for its adapters."""
    PREPARING = enum.auto()
    """It holds its slots; its photo is being read, its adapters are being loaded."""
    ENCODING = enum.auto()
    """Its text and its photo."""
    READY = enum.auto()
    """For a place in its shape's batch."""
    RUNNING = enum.auto()
    DECODING = enum.auto()
    """All its steps are taken."""


@dataclass(eq=False, kw_only=True)
class Job:
    """An order on its way."""

    order: PaintOrder
    arrived: float
    tell: Callable[[Event], None]
    """Hands an event to who asked; from any thread."""

    stage: Stage = Stage.WAITING
    loans: Sequence[Loan] = ()
    """The slots of its adapters, once it is let in."""
    uses: "Uses" = ()
    """(slot, weight) of each of its adapters, in their order."""
    image: "WorkingImage | None" = None
    shape: tuple[int, int] | None = None
    """Working height and width, once its photo is read."""
    row: Any = None
    """Where it stands between two steps, once it is encoded: the executor's."""
    tokens_cut: int = 0
    """Of its prompts: beyond the last window, without effect; once they are encoded."""
    passed: int = 0
    """Jobs that were let in before it, while it waited for slots in its turn."""
    started: float | None = None
    """When it took its first place in a batch."""
    step: int = 0
    """Steps taken."""
    rows_seen: int = 0
    """U-Net rows of all its batches."""
    previewed: int = 0
    pictures: "list[Outcome]" = field(default_factory=list)
    """Not yet handed over, in their order."""

    def __post_init__(self) -> None:
        order, sampling = self.order, self.order.request.sampling
        self.deadline = float("inf") if order.timeout_s is None else self.arrived + order.timeout_s
        self.digests = tuple(use.digest for use in order.adapters)
        self.unet_rows, self.steps, self.previews = 1 + sampling.is_guided, sampling.steps_taken, order.previews
        self.work = order.work or float(self.unet_rows * self.steps)


@dataclass(eq=False)
class Outcome:
    """A preview, or the end of a job."""

    job: Job
    index: int | None
    """Of the preview; None: the end."""
    is_finished: bool = False
    """Decoded and pasted."""
    content: Any = None
    """The engine's: the latents to decode, then what is handed over."""


class Scheduler:
    """Jobs in, batches out."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.table = SlotTable(settings.slots)
        self._waiting = FairQueue()
        self._active: dict[Job, None] = {}
        """All others, by age: few, for they are let in as there is room."""
        self._turns: list[tuple[int, int]] = []
        """Shapes whose jobs step or are ready to, the one that has waited longest first."""
        self._undecoded: list[Outcome] = []
        self._narrow: dict[tuple[int, int], tuple[int, float]] = {}
        """Shape -> U-Net rows that may step together, and until when, where more could not."""

    def __len__(self) -> int:
        return len(self._waiting) + len(self._active)

    def __contains__(self, job: object) -> bool:
        return isinstance(job, Job) and (job in self._active or job in self._waiting)

    def __iter__(self) -> Iterator[Job]:
        """All jobs: a copy, from any thread; one that is let in meanwhile is not missed."""
        waiting = list(self._waiting)
        return iter(dict.fromkeys([*self._active, *waiting]))

    def add(self, job: Job) -> None:
        """A job comes. Raises InpaintError for one with more adapters than there are slots."""
        if len(set(job.digests)) > self.settings.slots:
            raise InpaintError(
                f"{len(job.digests)} adapters in one order: this service takes at most {self.settings.slots}"
            )
        self._waiting.add(job)

    def remove(self, job: Job) -> None:
        """A job leaves, wherever it stands; its adapters' slots are given back."""
        if job in self._waiting:
            self._waiting.remove(job)
            return
        del self._active[job]
        self.table.release(job.loans)
        self._undecoded = [picture for picture in self._undecoded if picture.job is not job]
        job.pictures.clear()

    def expired(self, now: float) -> list[Job]:
        """Jobs whose deadline has passed: to be removed."""
        return [job for job in self if job.deadline <= now]

    def next_deadline(self) -> float:
        """The earliest; infinite without one."""
        return min((job.deadline for job in self), default=float("inf"))

    def admit(self) -> list[tuple[Job, list[Loan]]]:
        """Lets jobs in while there is room: each must now be read, and the adapters of these loans be loaded."""
        room = self.settings.max_rows + self.settings.ahead_rows - sum(job.unet_rows for job in self._active)
        admitted: dict[Job, list[Loan]] = {}
        blocked: list[Job] = []
        for job in self._waiting.in_turn():
            others = self._active or admitted
            if room < job.unet_rows or any(other.passed >= MAX_PASSED for other in blocked):
                break
            if others and (job.order.alone or any(other.order.alone for other in others)):
                break
            loans = self.table.acquire(job.digests)
            if loans is None:
                blocked.append(job)
                continue
            for other in blocked:
                other.passed += 1
            room -= job.unet_rows
            self._waiting.charge(job)
            job.stage, job.loans = Stage.PREPARING, loans
            slots = {loan.digest: loan.slot for loan in loans}
            job.uses = tuple((slots[use.digest], use.weight) for use in job.order.adapters)
            admitted[job] = [loan for loan in loans if loan.users == 1 and not loan.is_loaded]
        if admitted:
            self._active = dict.fromkeys(sorted([*self._active, *admitted], key=lambda job: job.arrived))
            for job in admitted:
                self._waiting.remove(job)
        return list(admitted.items())

    def to_encode(self) -> list[Job]:
        """The oldest jobs of one shape that are read and whose adapters are loaded; they are being encoded now."""
        read = [job for job in self._at(Stage.PREPARING) if job.shape is not None]
        ready = [job for job in read if all(loan.is_loaded for loan in job.loans)]
        jobs = [job for job in ready if job.shape == ready[0].shape][: self.settings.side_rows]
        for job in jobs:
            job.stage = Stage.ENCODING
        return jobs

    def encoded(self, jobs: list[Job]) -> None:
        """Those of them that are still here may take a place in a batch."""
        for job in jobs:
            if job in self._active:
                job.stage = Stage.READY

    def shapes(self) -> list[tuple[int, int]]:
        """Of all jobs that step, or are ready to, the oldest job's first."""
        return list(dict.fromkeys(job.shape for job in self._at(Stage.READY, Stage.RUNNING) if job.shape is not None))

    def to_step(self, now: float) -> list[Job]:
        """Jobs of one shape that take a step together now, oldest first: those that did before, and others that are
        ready while there is room."""
        shapes = self.shapes()
        self._turns = list(dict.fromkeys([*(shape for shape in self._turns if shape in shapes), *shapes]))
        if not shapes:
            return []
        self._turns.append(shape := self._turns.pop(0))
        width, until = self._narrow.get(shape, (0, now))
        room, batch = width if now < until else self.settings.max_rows, set()
        for job in (job for stage in (Stage.RUNNING, Stage.READY) for job in self._at(stage) if job.shape == shape):
            room -= job.unet_rows
            if room < 0:
                break
            if job.stage is Stage.READY:
                job.stage, job.started = Stage.RUNNING, now
            batch.add(job)
        return [job for job in self._active if job in batch]

    def narrow(self, parts: Sequence[list[Job]], now: float) -> None:
        """A batch could only step in these parts, so for a while no more of its shape step together."""
        shape, widest = parts[0][0].shape, max(sum(job.unet_rows for job in jobs) for jobs in parts)
        assert shape is not None
        self._narrow[shape] = widest, now + NARROW_S

    def stepped(self, batch: list[Job]) -> list[Outcome]:
        """All jobs of the batch have taken their step: the previews and ends that are to be decoded because of it."""
        rows, due = sum(job.unet_rows for job in batch), []
        for job in batch:
            job.step += 1
            job.rows_seen += rows
            if job.step == job.steps:
                job.stage = Stage.DECODING
                due.append(Outcome(job, None))
            elif job.previewed < job.previews and job.step >= (job.previewed + 1) * job.steps / (job.previews + 1):
                due.append(Outcome(job, job.previewed))
                job.previewed += 1
        for picture in due:
            picture.job.pictures.append(picture)
        self._undecoded += due
        return due

    def to_decode(self) -> list[Outcome]:
        """The oldest pictures of one shape."""
        alike = [picture for picture in self._undecoded if picture.job.shape == self._undecoded[0].job.shape]
        taken = alike[: self.settings.side_rows]
        self._undecoded = [picture for picture in self._undecoded if picture not in taken]
        return taken

    def finished(self, picture: Outcome) -> list[Outcome]:
        """A picture is decoded and pasted: those of its job to hand over now. With its end a job is gone."""
        picture.is_finished = True
        job, ready = picture.job, []
        while job.pictures and job.pictures[0].is_finished:
            ready.append(job.pictures.pop(0))
        if ready and ready[-1].index is None:
            self.remove(job)
        return ready

    def _at(self, *stages: Stage) -> list[Job]:
        return [job for job in self._active if job.stage in stages]
