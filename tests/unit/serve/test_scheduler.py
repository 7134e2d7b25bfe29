"""The engine's scheduler under random traffic, without a U-Net: nobody waits for ever, nobody loses a turn."""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inpaint.errors import InpaintError
from inpaint.paint.request import PaintRequest, SamplingSettings
from inpaint.serve.engine.scheduler import MAX_PASSED, Job, Outcome, Scheduler, Stage
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.engine.slot_table import Loan
from inpaint.serve.service import AdapterUse, PaintOrder

SHAPES = [(64, 64), (64, 96), (128, 128)]


def job(arrived: float = 0.0, *, digests: Sequence[str] = (), unet_rows: int = 1, steps: int = 2, **how: object) -> Job:
    """Args: how: of the order."""
    image = np.zeros((1, 1, 3), dtype=np.uint8)
    sampling = SamplingSettings(steps=steps, guidance_scale=float(unet_rows))
    request = PaintRequest(image=image, hole=image[..., 0] == 0, prompt="", seed=0, sampling=sampling)
    uses = tuple(AdapterUse(name=digest, digest=digest) for digest in digests)
    order = PaintOrder(id="order", request=request, adapters=uses, **how)  # type: ignore[arg-type]
    return Job(order=order, arrived=arrived, tell=lambda event: None)


def scheduler(**limits: int) -> Scheduler:
    return Scheduler(EngineSettings(**{"max_rows": 4, "ahead_rows": 2, "side_rows": 2, "slots": 2, **limits}))


def prepare(scheduler: Scheduler, shape: tuple[int, int] = SHAPES[0]) -> list[Job]:
    """Admits, reads, loads and encodes all that there is room for."""
    ready: list[Job] = []
    for admitted, loans in scheduler.admit():
        admitted.shape = shape
        for loan in loans:
            loan.is_loaded = True
    while jobs := scheduler.to_encode():
        scheduler.encoded(jobs)
        ready += jobs
    return ready


class Simulation:
    """An engine whose work takes random time, and which checks every promise as it goes."""

    def __init__(self, seed: int, limits: dict[str, int]) -> None:
        self.random = random.Random(seed)
        self.scheduler: Scheduler = Scheduler(EngineSettings(**limits))
        self.now = 0.0
        self.due: list[tuple[float, object]] = []
        self.slots: dict[int, str] = {}
        self.handed: dict[Job, list[int | None]] = defaultdict(list)
        self.gone: set[Job] = set()
        self.came: list[Job] = []
        self.waited: dict[tuple[int, int], set[tuple[int, int]]] = {}
        """Shape with rows -> shapes that have stepped since it last did."""

    def later(self, work: object) -> None:
        self.due.append((self.now + self.random.choice([0, 0, 1, 5]), work))

    def run(self, jobs: int) -> None:
        while len(self.came) < jobs or len(self.scheduler):
            if len(self.came) < jobs and self.random.random() < 0.5:
                self.come()
            self.turn()
            assert self.now < 100 * jobs, f"jobs wait for ever: {[j.stage for j in self.scheduler]}"
        assert not any(loan.users for loan in self.scheduler.table._loans.values())
        for one in set(self.came) - self.gone:
            wanted = min(one.previews, one.steps - 1)
            assert self.handed[one] == [*range(wanted), None], "previews in order, then the end"
            assert one.passed <= MAX_PASSED

    def come(self) -> None:
        pick = self.random.choice
        digests = tuple(self.random.sample("abcdefgh", pick([0, 1, 1, min(2, self.scheduler.settings.slots)])))
        timeout = pick([0, 10, 50]) if self.random.random() < 0.1 else None
        sizes = {"unet_rows": pick([1, 2]), "steps": pick([1, 3, 10]), "previews": pick([0, 0, 2])}
        sizes |= {"alone": self.random.random() < 0.05, "key": pick(["a", "a", "b"])}
        one = job(self.now, digests=digests, timeout_s=timeout, **sizes)
        self.came.append(one)
        self.scheduler.add(one)

    def turn(self) -> None:
        self.now += 1
        for entry in [entry for entry in self.due if entry[0] <= self.now]:
            self.due.remove(entry)
            entry[1]()  # type: ignore[operator]
        for one in [*self.scheduler.expired(self.now), *(j for j in self.scheduler if self.random.random() < 0.002)]:
            if one in self.scheduler:
                self.leave(one)
        self.admit()
        if jobs := self.scheduler.to_encode():
            assert len(jobs) <= self.scheduler.settings.side_rows and len({one.shape for one in jobs}) == 1
            self.later(lambda: self.scheduler.encoded(jobs))
        if batch := self.scheduler.to_step(self.now):
            self.check(batch)
            self.scheduler.stepped(batch)
        if pictures := self.scheduler.to_decode():
            assert len(pictures) <= self.scheduler.settings.side_rows
            assert all(picture.job in self.scheduler for picture in pictures)
            for picture in pictures:
                self.later(lambda picture=picture: self.hand_over(picture))

    def leave(self, one: Job) -> None:
        self.gone.add(one)
        self.scheduler.remove(one)

    def admit(self) -> None:
        for one, loans in self.scheduler.admit():
            shape = self.random.choice(SHAPES)
            self.later(lambda one=one, shape=shape: setattr(one, "shape", shape))
            for loan in loans:
                self.later(lambda loan=loan: self.load(loan))

    def load(self, loan: Loan) -> None:
        waiting = [one for one in self.scheduler if loan in one.loans]
        assert len(waiting) == loan.users and not loan.is_loaded
        if self.random.random() < 0.05:
            for one in waiting:
                self.leave(one)
        elif waiting:
            self.slots[loan.slot], loan.is_loaded = loan.digest, True

    def check(self, batch: list[Job]) -> None:
        shape, rows = batch[0].shape, sum(one.unet_rows for one in batch)
        assert len(self.scheduler._active) == 1 or not any(one.order.alone for one in self.scheduler._active)
        assert shape is not None and 0 < rows <= self.scheduler.settings.max_rows
        ages = [one.arrived for one in batch]
        assert ages == sorted(ages)
        for one in batch:
            assert one in self.scheduler and one.deadline > self.now and one.shape == shape
            assert tuple(self.slots[slot] for slot, _ in one.uses) == one.digests, "an adapter in use was evicted"
        left_out = [one for one in self.scheduler if one.stage is Stage.READY and one.shape == shape]
        newest = max((one.arrived for one in batch if one.started == self.now), default=-1.0)
        assert all(one.arrived >= newest for one in left_out), "a younger job took an older one's place"
        if left_out:
            assert rows + left_out[0].unet_rows > self.scheduler.settings.max_rows, "there was room"
        self.check_turn(shape)

    def check_turn(self, shape: tuple[int, int]) -> None:
        """No shape steps twice while another one waits all that time."""
        present = {one.shape for one in self.scheduler if one.stage in (Stage.READY, Stage.RUNNING)}
        self.waited = {other: self.waited.get(other, set()) for other in present if other is not None}
        for other, stepped in self.waited.items():
            if other != shape:
                assert shape not in stepped, f"{shape} steps again before {other}"
                stepped.add(shape)
        self.waited[shape] = set()

    def hand_over(self, picture: Outcome) -> None:
        if picture.job not in self.scheduler:
            return
        ready = self.scheduler.finished(picture)
        assert all(one.is_finished for one in ready)
        self.handed[picture.job] += [one.index for one in ready]
        assert (picture.job in self.scheduler) == (None not in self.handed[picture.job])


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    slots=st.integers(1, 4),
    max_rows=st.integers(2, 8),
    ahead_rows=st.integers(0, 4),
    side_rows=st.integers(1, 4),
)
def test_every_job_comes_to_its_end_in_its_turn(seed: int, **limits: int) -> None:
    Simulation(seed, limits).run(jobs=100)


@pytest.mark.parametrize("others", [(), ("a",)])
def test_a_job_that_waits_for_a_slot_is_passed_so_often_and_then_waited_for(others: tuple[str, ...]) -> None:
    waits = scheduler(slots=1)
    waits.add(job(digests=("a",), steps=10_000))
    prepare(waits)
    blocked = job(digests=("b",))
    waits.add(blocked)
    passed = 0
    for number in range(3 * MAX_PASSED):
        waits.add(younger := job(1 + number, digests=others))
        passed += younger in prepare(waits)
        while younger.stage in (Stage.READY, Stage.RUNNING):
            waits.stepped(waits.to_step(0.0))
        if younger.stage is Stage.DECODING:
            waits.finished(younger.pictures[0])
    assert passed == blocked.passed == MAX_PASSED
    waits.remove(next(iter(waits)))
    assert prepare(waits)[0] is blocked, "once the slot is free it comes before all that came after it"


def test_no_more_is_held_than_fits_and_the_next_few() -> None:
    full = scheduler(max_rows=4, ahead_rows=2)
    for number in range(10):
        full.add(job(number, unet_rows=2))
    assert len(prepare(full)) == 3
    assert not full.admit()
    batch = full.to_step(1.0)
    assert [one.arrived for one in batch] == [0, 1] and batch[0].started == 1.0
    full.remove(batch[0])
    assert [one.arrived for one in full.to_step(2.0)] == [1, 2], "its place is taken at once"


def test_a_removed_or_expired_job_steps_no_more_and_its_pictures_are_not_decoded() -> None:
    jobs = [job(0, previews=1, timeout_s=5.0), job(1, previews=1)]
    leaving = scheduler()
    for one in jobs:
        leaving.add(one)
    prepare(leaving)
    assert len(leaving.stepped(leaving.to_step(1.0))) == 2
    assert leaving.next_deadline() == 5.0
    assert leaving.expired(4.9) == [] and leaving.expired(5.0) == [jobs[0]]
    leaving.remove(jobs[0])
    assert leaving.to_step(5.0) == [jobs[1]]
    assert [picture.job for picture in leaving.to_decode()] == [jobs[1]]
    assert leaving.next_deadline() == float("inf")


def test_who_counts_jobs_while_one_is_let_in_misses_none() -> None:
    class Meanwhile(dict):
        """Active jobs; another thread lets one in while they are looked at."""

        def __iter__(self) -> Iterator[Job]:
            active = list(super().__iter__())
            counted._active = dict(self)
            counted.admit()
            return iter(active)

    counted = scheduler()
    counted.add(only := job())
    counted._active = Meanwhile()
    assert list(counted) == [only] and not counted._waiting


def test_pictures_are_handed_over_in_order_whichever_is_pasted_first() -> None:
    one = job(steps=3, previews=2)
    ordered = scheduler()
    ordered.add(one)
    prepare(ordered)
    pictures = [picture for _ in range(3) for picture in ordered.stepped(ordered.to_step(0.0))]
    assert [picture.index for picture in pictures] == [0, 1, None]
    assert ordered.to_step(0.0) == []
    assert ordered.finished(pictures[2]) == [] and one in ordered
    assert ordered.finished(pictures[0]) == pictures[:1]
    assert ordered.finished(pictures[1]) == pictures[1:] and one not in ordered


@pytest.mark.parametrize(("steps", "previews", "after"), [(8, 3, [2, 4, 6]), (3, 5, [1, 2]), (1, 2, []), (10, 1, [5])])
def test_previews_are_spread_over_the_steps(steps: int, previews: int, after: list[int]) -> None:
    one = job(steps=steps, previews=previews)
    spread = scheduler()
    spread.add(one)
    prepare(spread)
    shown = [one.step for _ in range(steps) for p in spread.stepped(spread.to_step(0.0)) if p.index is not None]
    assert shown == after


def test_more_adapters_than_slots_are_refused() -> None:
    with pytest.raises(InpaintError, match="3 adapters in one order"):
        scheduler(slots=2).add(job(digests=("a", "b", "c")))
