"""The plan's promises: once per epoch, the same set for any number of workers, and exact suffixes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inpaint.data.plan import Plan, worker_positions
from inpaint.errors import InpaintError


@settings(deadline=None)
@given(seed=st.integers(0, 2**40), rows=st.integers(1, 200), epoch=st.integers(0, 5))
def test_each_row_comes_once_per_epoch(seed, rows, epoch):
    epochs, found = Plan(seed, rows).lookup(np.arange(epoch * rows, (epoch + 1) * rows))
    assert sorted(found) == list(range(rows))
    assert set(epochs) == {epoch}


@settings(deadline=None)
@given(
    rows=st.integers(1, 40),
    micro_batch=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    workers=st.sampled_from([1, 2, 3, 4]),
    steps=st.integers(1, 12),
)
def test_workers_together_use_each_row_once_per_epoch(rows, micro_batch, accumulation, workers, steps):
    batch = {"global_batch": 12 * micro_batch * accumulation, "micro_batch": micro_batch, "workers": workers}
    seen = np.concatenate(
        [worker_positions(0, step, **batch, rank=rank) for step in range(steps) for rank in range(workers)]
    )
    assert sorted(seen) == list(range(steps * batch["global_batch"]))
    epochs, found = Plan(3, rows).lookup(seen)
    for epoch in range(len(seen) // rows):
        assert sorted(found[epochs == epoch]) == list(range(rows))


@settings(deadline=None)
@given(step=st.integers(0, 50), start=st.integers(0, 1000), micro_batch=st.sampled_from([1, 2, 4]))
def test_a_global_batch_is_the_same_set_for_any_number_of_workers(step, start, micro_batch):
    def together(workers):
        shape = {"global_batch": 24, "micro_batch": micro_batch, "workers": workers}
        return sorted(np.concatenate([worker_positions(start, step, **shape, rank=r) for r in range(workers)]))

    assert (
        together(1)
        == together(2)
        == together(3)
        == together(6)
        == list(range(start + 24 * step, start + 24 * step + 24))
    )


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_run_from_position_k_gives_each_worker_the_suffix(workers):
    shape = {"global_batch": 12, "micro_batch": 2, "workers": workers}
    for rank in range(workers):
        whole = np.concatenate([worker_positions(0, step, **shape, rank=rank) for step in range(10)])
        again = np.concatenate([worker_positions(48, step, **shape, rank=rank) for step in range(6)])
        assert np.array_equal(whole[4 * 12 // workers :], again)


def test_blocks_are_dealt_in_turn():
    shape = {"global_batch": 8, "micro_batch": 2, "workers": 2}
    assert worker_positions(100, 1, **shape, rank=0).tolist() == [108, 109, 112, 113]
    assert worker_positions(100, 1, **shape, rank=1).tolist() == [110, 111, 114, 115]


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    positions = np.arange(300)
    one = Plan(1, 100).lookup(positions)[1]
    assert np.array_equal(one, Plan(1, 100).lookup(positions)[1])
    assert not np.array_equal(one, Plan(2, 100).lookup(positions)[1])
    assert not np.array_equal(one[:100], one[100:200])
    backwards = Plan(1, 100).lookup(positions[::-1])[1]
    assert np.array_equal(backwards[::-1], one)


def test_the_order_of_a_seed_never_changes():
    """A checkpoint holds a position only: another order in a later version would resume on other rows."""
    assert Plan(0, 8).lookup(np.arange(16))[1].tolist() == [1, 0, 4, 7, 3, 2, 5, 6, 7, 1, 4, 6, 0, 2, 5, 3]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"global_batch": 10, "micro_batch": 4, "workers": 2}, "not a multiple of micro-batch 4 x 2 workers"),
        ({"global_batch": 0, "micro_batch": 1, "workers": 1}, "at least 1"),
    ],
)
def test_batches_that_do_not_divide_are_refused(shape, message):
    with pytest.raises(InpaintError, match=message):
        worker_positions(0, 0, **shape, rank=0)


def test_a_plan_of_nothing_is_refused():
    with pytest.raises(InpaintError, match="at least 1 row"):
        Plan(0, 0)
