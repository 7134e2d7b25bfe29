"""The plan and its layout: each row as often per epoch as it says, sources at their ratio, any number of workers."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inpaint.data import plan
from inpaint.data.buckets import in_buckets, shapes
from inpaint.data.plan import PADDING, Plan, StepLayout
from inpaint.data.rows import Manifest, Row
from inpaint.errors import InpaintError
from inpaint.randomness import generator

WORKERS = (1, 2, 3, 5)


def plan_of(seed: int, rows: int) -> Plan:
    return Plan(seed, np.ones(rows, dtype=np.int32), np.zeros(rows, dtype=np.int32), (1,))


def layout_of(workers: int, global_batch: int = 16, most: int = 4) -> StepLayout:
    return StepLayout(global_batch=global_batch, max_micro_batch=most, workers=workers)


def filled(positions: np.ndarray) -> list[int]:
    return sorted(positions[positions != PADDING].tolist())


@settings(deadline=None)
@given(seed=st.integers(0, 2**40), rows=st.integers(1, 200), epoch=st.integers(0, 5))
def test_each_row_comes_once_per_epoch(seed, rows, epoch):
    epochs, found = plan_of(seed, rows).lookup(np.arange(epoch * rows, (epoch + 1) * rows))
    assert sorted(found) == list(range(rows))
    assert set(epochs) == {epoch}


repeated_rows = st.lists(st.integers(1, 4), min_size=1, max_size=6)
shared_sources = st.lists(st.tuples(st.integers(1, 5), repeated_rows), min_size=1, max_size=3)


@settings(deadline=None)
@given(sources=shared_sources, seed=st.integers(0, 1000))
def test_rows_come_as_often_as_they_say_and_sources_at_their_ratio(sources, seed):
    shares = tuple(share for share, _ in sources)
    repeats = np.array([n for _, rows in sources for n in rows])
    owners = np.array([number for number, (_, rows) in enumerate(sources) for _ in rows])
    plan = Plan(seed, repeats, owners, shares)
    epochs, rows = plan.lookup(np.arange(40 * sum(shares)))
    for number, (share, own) in enumerate(sources):
        mine = owners[rows] == number
        assert mine.sum() == 40 * share
        for epoch in range(mine.sum() // sum(own)):
            drawn = rows[mine & (epochs == epoch)]
            assert np.array_equal(np.bincount(drawn, minlength=len(repeats))[owners == number], own)
        # In any window, as any global batch is, the counts are the ratio's to within one sample on each side.
        given = np.concatenate([[0], np.cumsum(mine)])
        for length in (sum(shares), 16):
            windows = given[length:] - given[:-length]
            assert np.abs(windows - length * share / sum(shares)).max() < 2
    assert plan.samples_per_epoch == math.ceil(sum(sources[0][1]) * sum(shares) / shares[0])


def test_an_epoch_is_one_pass_over_the_first_source():
    owners = np.repeat([0, 1], [10, 1000])
    plan = Plan(0, np.ones(1010, dtype=np.int64), owners, (2, 1))
    assert plan.samples_per_epoch == 15
    _, rows = plan.lookup(np.arange(15))
    assert sorted(rows[owners[rows] == 0]) == list(range(10))
    assert Plan(0, np.full(4, 3), np.zeros(4, dtype=int), (7,)).samples_per_epoch == 12
    # A source of which nothing is left has no share.
    assert Plan(0, np.ones(6, dtype=int), np.ones(6, dtype=int), (2, 1)).samples_per_epoch == 6


def test_the_plan_of_a_manifest_is_that_of_its_columns():
    rows = [
        Row(id=str(i), root="", image=str(i), source=i % 2, repeats=1 + i % 3, width=1, height=1, digest="0" * 64)
        for i in range(12)
    ]
    plan = Plan.of(Manifest.of(rows, (1, 3)), 4)
    same = Plan(4, np.array([r.repeats for r in rows]), np.array([r.source for r in rows]), (1, 3))
    assert np.array_equal(plan.lookup(np.arange(100)), same.lookup(np.arange(100)))


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    positions = np.arange(300)
    one = plan_of(1, 100).lookup(positions)[1]
    assert np.array_equal(one, plan_of(1, 100).lookup(positions)[1])
    assert not np.array_equal(one, plan_of(2, 100).lookup(positions)[1])
    assert not np.array_equal(one[:100], one[100:200])
    backwards = plan_of(1, 100).lookup(positions[::-1])[1]
    assert np.array_equal(backwards[::-1], one)


def test_the_order_of_a_seed_never_changes():
    """A checkpoint holds a position only: another order in a later version would resume on other rows."""
    assert plan_of(0, 8).lookup(np.arange(16))[1].tolist() == [1, 0, 4, 7, 3, 2, 5, 6, 7, 1, 4, 6, 0, 2, 5, 3]
    joined = Plan(0, np.array([1, 2, 1, 1]), np.array([0, 0, 1, 1]), (2, 1))
    assert joined.lookup(np.arange(12))[1].tolist() == [1, 2, 0, 1, 3, 1, 0, 3, 1, 0, 2, 1]


bucketed_rows = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=40)


@settings(deadline=None, max_examples=40)
@given(rows=bucketed_rows, seed=st.integers(0, 1000), batch=st.integers(1, 7))
def test_batches_are_of_one_bucket_and_each_row_comes_as_often_as_it_says(rows, seed, batch):
    buckets, repeats = (np.array(column) for column in zip(*rows, strict=True))
    plan = Plan(seed, repeats, np.zeros(len(rows), dtype=int), (1,), buckets=buckets, batch=batch)
    total = -(-6 * repeats.sum() // batch) * batch
    positions = np.arange(total)
    epochs, found = plan.lookup(positions)
    assert (np.ptp(buckets[found].reshape(-1, batch), axis=1) == 0).all()
    for bucket in np.unique(buckets):
        mine = buckets[found] == bucket
        own = np.where(buckets == bucket, repeats, 0)
        for epoch in range(6 * own.sum() // batch * batch // own.sum()):
            assert np.array_equal(np.bincount(found[mine & (epochs == epoch)], minlength=len(rows)), own)
        # No bucket runs ahead of the others by more than an epoch and what does not fill a batch.
        assert abs(mine.sum() - total * own.sum() / repeats.sum()) <= own.sum() + batch
    some = np.random.default_rng(0).permutation(positions)[:20]
    assert np.array_equal(plan.lookup(some), (epochs[some], found[some])), "a function of the position alone"


def test_batches_of_buckets_are_shuffled_and_sources_take_turns_by_batch():
    buckets, owners = np.repeat([0, 1, 0, 1], 32), np.repeat([0, 1], 64)
    plan = Plan(3, np.ones(128, dtype=int), owners, (2, 1), buckets=buckets, batch=4)
    epochs, found = plan.lookup(np.arange(96 * 2))
    of_batch, source = buckets[found].reshape(-1, 4), owners[found].reshape(-1, 4)
    assert (np.ptp(of_batch, axis=1) == 0).all() and (np.ptp(source, axis=1) == 0).all()
    assert source[:6, 0].tolist() == [0, 1, 0] * 2
    first = found[(owners[found] == 0) & (epochs == 0)]
    assert sorted(first) == list(range(64)) and not np.array_equal(np.sort(first), first)
    turns = [of_batch[source[:, 0] == 0, 0][half : half + 16].tolist() for half in (0, 16)]
    assert turns[0] != turns[1] and sorted(turns[0]) == sorted(turns[1]) == [0] * 8 + [1] * 8
    assert pickle.dumps(plan), "it travels to workers of whatever reads"


def test_images_are_seen_in_the_shape_that_crops_least_of_them():
    found = shapes(512**2)
    assert found == ((640, 384), (576, 448), (512, 512), (448, 576), (384, 640))
    assert all(h * w <= 512**2 and h % 64 == w % 64 == 0 and max(h, w) <= 2 * min(h, w) for h, w in found)
    sizes = [(500, 500), (300, 400), (4000, 3000), (100, 900)]
    rows = [
        Row(id=str(i), root="", image=str(i), width=w, height=h, digest=f"{i:064x}") for i, (w, h) in enumerate(sizes)
    ]
    plain = Manifest.of(rows)
    manifest = in_buckets(plain, found)
    assert [found[bucket] for bucket in manifest.buckets] == [(512, 512), (576, 448), (448, 576), found[0]]
    assert list(manifest.rows()) == rows and plain.buckets is None
    assert manifest.hash != plain.hash and Plan.of(manifest, 0, batch=2).samples_per_epoch == 4
    for side in (32, 64, 128, 216):  # nothing, one shape, and shapes of far smaller areas
        with pytest.raises(InpaintError, match=rf"aspect buckets of {side**2:,} px.*give another resolution"):
            shapes(side**2)
    assert (512, 768) in shapes(512 * 768), "what was asked for is among them"


@settings(deadline=None)
@given(rows=bucketed_rows, shares=st.tuples(st.integers(1, 3), st.integers(1, 3)), batch=st.integers(1, 7))
def test_rows_of_a_bucket_that_never_fills_a_batch_are_counted(rows, shares, batch):
    buckets, repeats = (np.array(column) for column in zip(*rows, strict=True))
    owners = np.arange(len(rows)) % min(2, len(rows))
    plan = Plan(0, repeats, owners, shares, buckets=buckets, batch=batch)
    for total in (batch, 5 * batch, 20 * batch):
        seen = {(owners[row], buckets[row]) for row in plan.lookup(np.arange(total))[1]}
        assert plan.left_out(total) == sum(kind not in seen for kind in zip(owners, buckets, strict=True))
    assert plan_of(0, 8).left_out(4) == 0, "without buckets, each comes in its turn"


@settings(deadline=None)
@given(
    global_batch=st.integers(1, 40),
    most=st.integers(1, 8),
    workers=st.integers(1, 9),
    start=st.integers(0, 1000),
    step=st.integers(0, 50),
)
def test_a_step_is_the_next_global_batch_for_any_number_of_workers(global_batch, most, workers, start, step):
    layout = layout_of(workers, global_batch, most)
    first = start + step * global_batch
    dealt = [layout.positions(first, rank) for rank in range(workers)]
    assert {d.shape for d in dealt} == {(layout.accumulation, layout.micro_batch)} and layout.micro_batch <= most
    assert filled(np.stack(dealt)) == list(range(first, first + global_batch))
    # No block is all padding where there is a sample for each, and none has two samples more than another.
    sizes = [(block != PADDING).sum() for rank in dealt for block in rank]
    assert max(sizes) - min(sizes) <= 1
    # The blocks of a run, dealt in turn, are what each worker gets step by step.
    for rank in range(workers):
        blocks = [layout.block(start, step * layout.blocks + b) for b in range(rank, layout.blocks, workers)]
        assert np.array_equal(np.stack(blocks), dealt[rank])


@pytest.mark.parametrize("workers", WORKERS)
def test_a_run_from_position_k_gives_each_worker_the_suffix(workers):
    layout = layout_of(workers)
    for rank in range(workers):
        whole = [layout.positions(16 * step, rank) for step in range(10)]
        again = [layout.positions(64 + 16 * step, rank) for step in range(6)]
        assert np.array_equal(whole[4:], again)


def test_blocks_are_dealt_in_turn():
    layout = layout_of(2, global_batch=8, most=2)
    assert layout.positions(108, 0).tolist() == [[108, 109], [112, 113]]
    assert layout.positions(108, 1).tolist() == [[110, 111], [114, 115]]


@pytest.mark.parametrize(
    ("workers", "accumulation", "micro_batch"), [(1, 4, 4), (2, 2, 4), (3, 2, 3), (5, 1, 4), (16, 1, 1), (20, 1, 1)]
)
def test_micro_batches_are_worked_out(workers, accumulation, micro_batch):
    layout = layout_of(workers)
    assert (layout.accumulation, layout.micro_batch) == (accumulation, micro_batch)
    padding = workers * accumulation * micro_batch - 16
    assert (np.stack([layout.positions(0, rank) for rank in range(workers)]) == PADDING).sum() == padding


@pytest.mark.parametrize("wrong", [{"global_batch": 0}, {"most": 0}, {"workers": 0}])
def test_layouts_of_nothing_are_refused(wrong):
    with pytest.raises(InpaintError, match="at least 1"):
        layout_of(**{"workers": 1, **wrong})


def test_each_order_is_made_once_however_many_sources_there_are(monkeypatch):
    made = []
    monkeypatch.setattr(plan, "generator", lambda *key: made.append(key) or generator(*key))
    joined = Plan(77, np.ones(60, dtype=int), np.arange(60) % 6, (1,) * 6)
    for start in range(54, 90, 6):
        joined.lookup(np.arange(start, start + 6))
    assert len(made) == len(set(made)) == 12


def test_plans_that_cannot_be_are_refused():
    with pytest.raises(InpaintError, match="at least 1 row"):
        plan_of(0, 0)
    with pytest.raises(InpaintError, match="each must be at least 1"):
        Plan(0, np.array([1, 0]), np.zeros(2, dtype=int), (1,))
    with pytest.raises(InpaintError, match="smaller numbers"):
        Plan(0, np.array([1, 1]), np.array([0, 1]), (1, 10**6))
