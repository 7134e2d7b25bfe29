"""Whose turn it is: no key gets more of the engine than another that waits, however much it asks for."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from inpaint.serve.engine.fair_queue import FairQueue
from inpaint.serve.engine.scheduler import Job
from tests.unit.serve.test_scheduler import job

KINDS = st.sampled_from(["comes", "turn", "turn", "leaves"])
EVENTS = st.lists(st.tuples(KINDS, st.integers(0, 2), st.integers(1, 50)))


def next_of(queue: FairQueue) -> Job:
    chosen = next(queue.in_turn())
    queue.charge(chosen)
    queue.remove(chosen)
    return chosen


@given(EVENTS)
def test_keys_that_wait_get_the_same_work_done_to_within_a_job_of_each(events: list[tuple[str, int, int]]) -> None:
    queue, came = FairQueue(), 0
    waiting: dict[str, list[Job]] = {key: [] for key in "abc"}
    since: dict[tuple[str, str], defaultdict[str, float]] = {}
    """Two keys that both wait -> the work done of each since they do."""
    for what, number, size in events:
        key = "abc"[number]
        if what == "comes":
            came += 1
            waiting[key].append(job(came, key=key, work=float(size)))
            queue.add(waiting[key][-1])
        elif what == "leaves" and waiting[key]:
            queue.remove(waiting[key].pop(size % len(waiting[key])))
        elif what == "turn" and len(queue):
            done = next_of(queue)
            assert done is waiting[done.order.key].pop(0), "of a key by age"
            for pair, work in since.items():
                if done.order.key in pair:
                    work[done.order.key] += done.work
                    assert abs(work[pair[0]] - work[pair[1]]) < 2 * 50
        both = {(a, b) for a, b in ("ab", "ac", "bc") if waiting[a] and waiting[b]}
        since = {pair: since.get(pair, defaultdict(float)) for pair in both}
        assert sorted(one.arrived for one in queue) == sorted(one.arrived for q in waiting.values() for one in q)


def test_a_key_that_comes_late_waits_for_no_backlog_and_is_owed_nothing() -> None:
    queue = FairQueue()
    for number in range(20):
        queue.add(job(number, key="early", work=10.0))
    for _ in range(10):
        next_of(queue)
    for number in range(20, 30):
        queue.add(job(number, key="late", work=10.0))
    order = [next_of(queue).order.key for _ in range(10)]
    assert order.count("late") == 5 and "late" in order[:2]


def test_who_leaves_before_its_turn_costs_its_key_nothing() -> None:
    queue = FairQueue()
    given_up = [job(number, key="a", work=1000.0) for number in range(5)]
    for one in given_up:
        queue.add(one)
    for one in given_up:
        queue.remove(one)
    queue.add(job(5, key="b", work=10.0))
    queue.add(job(6, key="b", work=10.0))
    queue.add(job(7, key="a", work=10.0))
    assert [next_of(queue).order.key for _ in range(3)] == ["b", "a", "b"]
