"""The plan: (seed, position) -> (epoch, row), and how positions are dealt to workers. Pure: no order is ever saved.

Guarantees: each row comes exactly as often in one epoch of its source as its repeats say; joined sources come in the
ratio of their shares, evenly, whatever their counts; nothing depends on the number of workers; a run that starts at
position K sees exactly the suffix of a run that started at 0. The last batch of an epoch runs on into the next one.
Where rows have buckets, all samples of a global batch are of one: whole batches are permuted, sources take turns by
batch, and what does not fill the last batch of a bucket in one epoch begins its first one in the next.
Source of the idea: EDM2's `InfiniteSampler(start_idx=cur_nimg)`, edm2/training/training_loop.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from inpaint.data.rows import Manifest
from inpaint.errors import InpaintError
from inpaint.randomness import generator

PADDING = -1
"""The position of a slot that no sample fills."""
MOST_SHARES = 100_000


@lru_cache
def orders(seed: int, purpose: str, slots: int) -> Callable[[int], np.ndarray]:
    """Epoch -> its `permutation`. The last two of each purpose are kept, for a worker touches no more at a time, and a
    set of 10 M rows costs 40 MB each."""
    return lru_cache(maxsize=2)(partial(permutation, seed, purpose, slots))


def permutation(seed: int, purpose: str, slots: int, epoch: int) -> np.ndarray:
    """The order of one epoch: a Philox permutation, uint32[slots], read-only."""
    # Sorting the raw Philox words, for numpy promises their stream for ever and that of `shuffle` not.
    words = generator(seed, purpose, epoch).bit_generator.random_raw(slots)
    order = np.argsort(words, kind="stable").astype(np.uint32)
    order.setflags(write=False)
    return order


class Shuffled:
    """Rows without end: the same slots epoch after epoch, each time in another order."""

    def __init__(self, seed: int, purpose: str, slots: np.ndarray) -> None:
        """Args: slots: uint32, the rows of one epoch, each as often as it comes in it."""
        self.slots, self._seed, self._purpose = slots, seed, purpose

    def __len__(self) -> int:
        return len(self.slots)

    def lookup(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places, int64[B], any order -> epoch and row, int64[B] each."""
        epochs, offsets = np.divmod(places, len(self))
        rows, order_of = np.empty_like(places), orders(self._seed, self._purpose, len(self))
        for epoch in np.unique(epochs):
            now = epochs == epoch
            rows[now] = self.slots[order_of(int(epoch))[offsets[now]]]
        return epochs, rows


def filled(epochs: np.ndarray | int, sizes: tuple[int, ...], batch: int) -> np.ndarray:
    """Batches that so many epochs of buckets of `sizes` fill, int64[..., buckets]."""
    return np.multiply.outer(epochs, sizes) // batch


@lru_cache
def deals(seed: int, purpose: str, sizes: tuple[int, ...], batch: int) -> Callable[[int], np.ndarray]:
    """Epoch -> its `deal`, kept as `orders` are."""
    return lru_cache(maxsize=2)(partial(deal, seed, purpose, sizes, batch))


def deal(seed: int, purpose: str, sizes: tuple[int, ...], batch: int, epoch: int) -> np.ndarray:
    """Of each batch of an epoch the bucket, and the place in its rows where it begins; int64[2, batches]."""
    before, after = (filled(number, sizes, batch) for number in (epoch, epoch + 1))
    buckets = np.repeat(np.arange(len(sizes)), after - before)
    numbers = np.concatenate([np.arange(first, end) for first, end in zip(before, after, strict=True)])
    return np.stack([buckets, numbers * batch])[:, permutation(seed, purpose, len(buckets), epoch)]


class Bucketed:
    """Rows without end in batches of one bucket each. An epoch has the batches that its rows fill, in an order of its
    own; the rows of each bucket are `Shuffled`, and what they leave over comes in the next epoch."""

    def __init__(self, seed: int, purpose: str, buckets: list[np.ndarray], batch: int) -> None:
        """Args: buckets: the slots of each, as of `Shuffled`."""
        self._seed, self._purpose, self._batch = seed, f"{purpose} of batches", batch
        self._rows = [Shuffled(seed, f"{purpose} in bucket {n}", slots) for n, slots in enumerate(buckets)]
        self._sizes = tuple(len(slots) for slots in buckets)

    def __len__(self) -> int:
        return sum(self._sizes)

    def left_out(self, batches: int) -> int:
        """Rows whose bucket is in none of the first so many batches."""
        epoch = batches * self._batch // len(self)
        while filled(epoch + 1, self._sizes, self._batch).sum() <= batches:
            epoch += 1
        counts = filled(epoch, self._sizes, self._batch)
        begun = deal(self._seed, self._purpose, self._sizes, self._batch, epoch)[0, : batches - counts.sum()]
        counts += np.bincount(begun, minlength=len(counts))
        return sum(len(np.unique(rows.slots)) for rows, count in zip(self._rows, counts, strict=True) if not count)

    def lookup(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places, int64[B], any order -> epoch of the row's bucket and row, int64[B] each."""
        batches, within = np.divmod(places, self._batch)
        buckets, firsts = np.empty_like(places), np.empty_like(places)
        of_all = batches * self._batch // len(self)
        while (late := filled(of_all + 1, self._sizes, self._batch).sum(axis=-1) <= batches).any():
            of_all += late
        dealt = deals(self._seed, self._purpose, self._sizes, self._batch)
        for epoch in np.unique(of_all):
            now = of_all == epoch
            before = filled(epoch, self._sizes, self._batch).sum()
            buckets[now], firsts[now] = dealt(int(epoch))[:, batches[now] - before]
        epochs, rows = np.empty_like(places), np.empty_like(places)
        for bucket in np.unique(buckets):
            now = buckets == bucket
            epochs[now], rows[now] = self._rows[bucket].lookup(firsts[now] + within[now])
        return epochs, rows


class Plan:
    """The order in which a run with `seed` uses the rows of a manifest."""

    def __init__(
        self,
        seed: int,
        repeats: np.ndarray,
        sources: np.ndarray,
        shares: tuple[int, ...],
        *,
        buckets: np.ndarray | None = None,
        batch: int = 1,
    ) -> None:
        """`repeats` and `sources`, int[rows]: how often a row comes per epoch of its source, and which that is.

        Args:
            buckets: int[rows], of the shape that a row is seen in; None: they are all of one.
            batch: samples of a global batch, which are then all of one bucket.

        A source without rows is left out. Raises InpaintError where there are no rows, or shares that cannot be kept.
        """
        if not len(repeats):
            raise InpaintError("a plan needs at least 1 row, got 0: is everything in the quarantine?")
        if repeats.min() < 1 or min(shares) < 1 or sources.max() >= len(shares):
            raise InpaintError(f"repeats from {repeats.min()}, shares {shares}: each must be at least 1")
        if repeats.sum(dtype=np.int64) > np.iinfo(np.uint32).max:
            raise InpaintError(f"a plan holds at most {np.iinfo(np.uint32).max} samples per epoch")
        self.seed = seed
        self._together = 1 if buckets is None else batch
        self._rows: list[Shuffled | Bucketed] = []
        for source in np.unique(sources).tolist():
            own = np.flatnonzero(sources == source).astype(np.uint32)
            slots, purpose = own.repeat(repeats[own]), f"order of source {source}" if source else "order"
            if buckets is None:
                self._rows.append(Shuffled(seed, purpose, slots))
            else:
                of_each = [slots[buckets[slots] == bucket] for bucket in np.unique(buckets[own])]
                self._rows.append(Bucketed(seed, purpose, of_each, batch))
        used = [shares[source] for source in np.unique(sources)]
        self._turns = _turns(tuple(share // math.gcd(*used) for share in used))

    @classmethod
    def of(cls, manifest: Manifest, seed: int, batch: int = 1) -> "Plan":
        """The plan of a manifest's rows. Args: batch: as of `__init__`; without effect where there are no buckets."""
        repeats, sources = (manifest.table[name].to_numpy() for name in ("repeats", "source"))
        return cls(seed, repeats, sources, manifest.shares, buckets=manifest.buckets, batch=batch)

    @property
    def samples_per_epoch(self) -> int:
        """Positions of one pass over the first source with its repeats; the others keep their share beside it."""
        return math.ceil(len(self._rows[0]) * len(self._turns) / int((self._turns == 0).sum()))

    def left_out(self, total: int) -> int:
        """Rows that none of the first `total` positions shows, for their bucket does not fill a batch by then."""
        rounds, rest = divmod(-(-total // self._together), len(self._turns))
        of_each = rounds * np.bincount(self._turns) + np.bincount(self._turns[:rest], minlength=len(self._rows))
        few = zip(self._rows, of_each.tolist(), strict=True)
        return sum(own.left_out(batches) for own, batches in few if isinstance(own, Bucketed))

    def lookup(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions, int64[B], any order -> epoch of the row's source, int64[B], and row, int64[B]."""
        positions = np.asarray(positions, dtype=np.int64)
        assert positions.size == 0 or positions.min() >= 0, "positions count from 0"
        numbers, within = np.divmod(positions, self._together)
        rounds, turns = np.divmod(numbers, len(self._turns))
        epochs, rows = np.empty_like(positions), np.empty_like(positions)
        for index, own in enumerate(self._rows):
            mine = self._turns == index
            here = np.flatnonzero(mine[turns])
            drawn = rounds[here] * mine.sum() + (np.cumsum(mine) - mine)[turns[here]]
            epochs[here], rows[here] = own.lookup(drawn * self._together + within[here])
        return epochs, rows


@lru_cache
def _turns(shares: tuple[int, ...]) -> np.ndarray:
    """Whose turn it is at each position of a round: always the source that is most behind its share."""
    length = sum(shares)
    if length > MOST_SHARES:
        raise InpaintError(f"shares {shares}: write the ratio in smaller numbers")
    wanted, given = np.array(shares), np.zeros(len(shares), dtype=np.int64)
    turns = np.empty(length, dtype=np.int64)
    for position in range(length):
        turns[position] = np.argmax(wanted * (position + 1) - given * length)
        given[turns[position]] += 1
    turns.setflags(write=False)
    return turns


@dataclass(frozen=True, kw_only=True)
class StepLayout:
    """How the positions of each step are dealt: in blocks of one micro-batch, to the workers in turn.

    Any number of workers fits: where it does not divide the global batch, blocks end with padding, spread evenly.
    """

    global_batch: int
    """Samples per optimizer step, over all workers."""
    max_micro_batch: int
    """Most samples of one forward."""
    workers: int

    def __post_init__(self) -> None:
        if min(self.global_batch, self.max_micro_batch, self.workers) < 1:
            raise InpaintError(
                f"global batch {self.global_batch}, largest micro-batch {self.max_micro_batch} and workers "
                f"{self.workers} must each be at least 1"
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches per worker and step."""
        return math.ceil(self._share / self.max_micro_batch)

    @property
    def micro_batch(self) -> int:
        """Slots of one forward: samples, and padding where they do not divide."""
        return math.ceil(self._share / self.accumulation)

    @property
    def blocks(self) -> int:
        """Micro-batches per step, over all workers."""
        return self.workers * self.accumulation

    @property
    def _share(self) -> int:
        return math.ceil(self.global_batch / self.workers)

    def block(self, start: int, index: int) -> np.ndarray:
        """Positions of block `index` of a run that begins at `start`, int64[micro_batch], `PADDING` where none."""
        step, block = divmod(index, self.blocks)
        first, end = (self.global_batch * b // self.blocks for b in (block, block + 1))
        positions = np.full(self.micro_batch, PADDING, dtype=np.int64)
        positions[: end - first] = start + step * self.global_batch + np.arange(first, end)
        return positions

    def positions(self, start: int, rank: int) -> np.ndarray:
        """What worker `rank` gets in the step that begins at `start`, int64[accumulation, micro_batch].

        All workers' positions together are `start` .. `start + global_batch`, each once, and padding.
        """
        assert 0 <= rank < self.workers, (rank, self.workers)
        return np.stack([self.block(start, index) for index in range(rank, self.blocks, self.workers)])
