"""The plan: (seed, position) -> (epoch, row). Pure, so that nothing about the order of the data is ever saved.

Guarantees: each row comes exactly once per epoch, whatever the number of workers; a run that starts at position K
sees exactly the suffix of a run that started at 0. The last batch of an epoch runs on into the next epoch.
Source of the idea: EDM2's `InfiniteSampler(start_idx=cur_nimg)`, edm2/training/training_loop.py.
"""

from functools import lru_cache

import numpy as np

from inpaint.errors import InpaintError
from inpaint.randomness import generator

_CACHED_EPOCHS = 4  # one worker touches at most two epochs at a time, and a set of 10 M rows costs 40 MB each


@lru_cache(maxsize=_CACHED_EPOCHS)
def permutation(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The order of the rows in one epoch: a Philox permutation, uint32[rows], read-only."""
    # Sorting the raw Philox words, for numpy promises their stream for ever and that of `shuffle` not.
    words = generator(seed, "order", epoch).bit_generator.random_raw(rows)
    order = np.argsort(words, kind="stable").astype(np.uint32)
    order.setflags(write=False)
    return order


class Plan:
    """The order in which a run with `seed` uses `rows` rows."""

    def __init__(self, seed: int, rows: int) -> None:
        if rows < 1:
            raise InpaintError(f"a plan needs at least 1 row, got {rows}: is everything in the quarantine?")
        if rows > np.iinfo(np.uint32).max:
            raise InpaintError(f"a plan holds at most {np.iinfo(np.uint32).max} rows, got {rows}")
        self.seed = seed
        self.rows = rows

    def lookup(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions, int64[B], any order -> epoch int64[B] and row int64[B]."""
        positions = np.asarray(positions, dtype=np.int64)
        assert positions.size == 0 or positions.min() >= 0, "positions count from 0"
        epochs, offsets = np.divmod(positions, self.rows)
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = permutation(self.seed, int(epoch), self.rows)[offsets[here]]
        return epochs, rows


def worker_positions(
    start: int, step: int, *, global_batch: int, micro_batch: int, workers: int, rank: int
) -> np.ndarray:
    """The positions that worker `rank` gets in `step` of a run that began at `start`, int64[global_batch / workers].

    Blocks of one micro-batch are dealt in turn, so the workers' positions of a step together are the next
    `global_batch` positions for any number of workers; a worker accumulates over its micro-batches in this order.
    """
    check_batch(global_batch, micro_batch, workers)
    assert 0 <= rank < workers, (rank, workers)
    first = start + step * global_batch
    blocks = np.arange(rank, global_batch // micro_batch, workers, dtype=np.int64)
    return (first + blocks[:, None] * micro_batch + np.arange(micro_batch, dtype=np.int64)).ravel()


def check_batch(global_batch: int, micro_batch: int, workers: int) -> None:
    """Raise InpaintError unless a global batch is a whole number of micro-batches for every worker."""
    if min(global_batch, micro_batch, workers) < 1:
        raise InpaintError(
            f"global batch {global_batch}, micro-batch {micro_batch} and workers {workers} must each be at least 1"
        )
    if global_batch % (micro_batch * workers):
        raise InpaintError(
            f"global batch {global_batch} is not a multiple of micro-batch {micro_batch} x {workers} workers: "
            f"choose a micro-batch that divides {global_batch / workers:g}, or another number of workers"
        )
