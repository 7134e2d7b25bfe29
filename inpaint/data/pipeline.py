"""The wiring on Ray Data: source -> manifest, plan -> batches. Beside `ray_internals.py` the only file of data/ that
imports ray.

Guarantees of `batches`: blocks of exactly one micro-batch, in the order of the plan; `streaming_split(W, equal=True)`
deals them in turn, so a step's positions are the next global batch for any W; a file that vanished becomes a row
with weight 0, never a crash and never a shifted position. Not covered: a file whose content changed is read as it is.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.cloudpickle
import ray.data

from inpaint.data import quarantine as bad_rows
from inpaint.data.decode import DEFAULT_LIMITS, Limits
from inpaint.data.decoded import DecodedRows, bytes_each, crops_shown, decode, kind_of
from inpaint.data.inspection import Look, files_of, inspect_files, recall, remember, rows_found
from inpaint.data.latents import StoredLatents
from inpaint.data.plan import Plan, StepLayout
from inpaint.data.quarantine import Quarantined
from inpaint.data.ray_internals import set_pace, take_blocks_at_once
from inpaint.data.rows import SCHEMA, Manifest
from inpaint.data.sample import ReadSettings, read_batch, settle_reader
from inpaint.data.sources import Source
from inpaint.data.storage import exists, open_root
from inpaint.errors import InpaintError
from inpaint.stopping import StopToken

MOST_OF_STORE = 0.3
"""Of a machine's object store that decoded rows may take; batches need the rest."""
MIN_PER_PIECE, MAX_BYTES_PER_PIECE = 8, 16 * 2**20
"""Crops that lie together in the store."""
MAX_POSITIONS_PER_TASK = 1024
MAX_BYTES_PER_TASK = 256 * 2**20
MAX_POSITIONS_AHEAD = 16 * MAX_POSITIONS_PER_TASK
MAX_BLOCKS_IN_HAND = 64
MAX_BYTES_IN_HAND = 64 * 2**20
THREADS_PER_TASK = 2
FETCHERS_PER_TASK = 16
SMALL_PIXELS = 256**2
LONGEST_WAIT_S = 7 * 24 * 3600  # for places: a cluster that is merely busy, or that grows
MIN_TASKS = 16  # so that short runs are spread over the cores, too
MAX_READ_TASKS = 1024
MAX_FILES_PER_TASK = 64
MAX_INSPECTING_TASKS = 512  # in very large sets they are larger


Batch = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Work on blocks by a pool of actors that hold a model: one block in, one out, in their order."""

    pickled: bytes
    """By `ray.cloudpickle`, for what it needs is imported by the actors alone: () -> (batch -> batch)."""
    actors: int
    cpus: float
    """Of each actor, as `gpus`."""
    gpus: float = 0.0
    accelerator: str | None = None
    """Kind of GPU, as Ray calls it (`L4`); unset: any."""
    free_cpus: float | None = None
    """That reading and the pool have together; unset: all of the cluster's."""
    bytes_per_row: int = 0
    """Of what it puts in place of pixels."""

    def after(self, dataset: ray.data.Dataset) -> ray.data.Dataset:
        """What becomes of a dataset's blocks."""
        options = {"accelerator_type": self.accelerator} if self.accelerator and self.gpus else {}
        found = dataset.map_batches(
            _Actor,
            batch_size=None,
            fn_constructor_args=(self.pickled,),
            compute=ray.data.ActorPoolStrategy(size=self.actors),
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            **options,
        )
        # The pool has its places before anything is read: a task that waits for an actor to take its blocks keeps its
        # CPU, and the actor might need that very one.
        found.context.wait_for_min_actors_s = LONGEST_WAIT_S
        return found


class _Actor:
    """One of a stage's pool."""

    def __init__(self, pickled: bytes) -> None:
        settle_reader()
        self.work: Callable[[Batch], Batch] = ray.cloudpickle.loads(pickled)()

    def __call__(self, batch: Batch) -> Batch:
        return self.work(batch)


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedRows:
    """`DecodedRows` in Ray's object store, where all processes of a machine read the same memory; they are gone when
    nobody holds this any more. Pickles."""

    kind: tuple[object, ...]
    """`kind_of` the settings that they were decoded with."""
    places: np.ndarray
    """As in `DecodedRows`, and `per_piece`."""
    per_piece: int
    pieces: list[ray.ObjectRef]
    bytes: int
    """In the store."""

    def opened(self, read: ReadSettings) -> DecodedRows | None:
        """For a reading by these settings; None where it sees rows in another way."""
        if self.kind != kind_of(read):
            return None
        return DecodedRows(self.places, self.per_piece, ray.get(self.pieces))


def store_room() -> int:
    """Bytes that decoded rows may take of the object store, in which each machine has all that it reads."""
    stores = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
    return int(MOST_OF_STORE * min(stores))


def share_rows(
    manifest: Manifest, read: ReadSettings, plan: Plan, span: range, *, room: int, stop: StopToken
) -> SharedRows | None:
    """Decode what samples at positions show, once; None where it takes more than `room` bytes, or where each sample has
    a crop of its own. Raises InpaintError where `stop` was asked for."""
    shown, each = crops_shown(manifest, read, plan, span), bytes_each(manifest, read)
    if shown is None or shown.sum() * each > room:
        return None
    entries, places = np.argwhere(shown), np.full(shown.shape, -1)
    places[shown] = np.arange(len(entries))
    per_piece = min(max(MIN_PER_PIECE, -(-len(entries) // MIN_TASKS)), max(1, MAX_BYTES_PER_PIECE // each))
    shared, starts = ray.put((manifest, read)), range(0, len(entries), per_piece)
    remote = _any_remote(manifest.table)

    @ray.remote(num_cpus=1)
    def decode_task(known: tuple[Manifest, ReadSettings], entries: np.ndarray) -> dict[str, Any]:
        settle_reader()
        with ThreadPoolExecutor(FETCHERS_PER_TASK) as pool:
            return decode(*known, entries, pool if remote else None)

    pieces = []
    for piece in _in_turn(lambda start: decode_task.remote(shared, entries[start : start + per_piece]), starts):
        stop.check()
        pieces.append(piece)
    return SharedRows(kind=kind_of(read), places=places, per_piece=per_piece, pieces=pieces, bytes=len(entries) * each)


def _in_turn(begin: Callable[[int], ray.ObjectRef], starts: Iterable[int]) -> Iterator[ray.ObjectRef]:
    """The tasks' results in their order, each as soon as it is there."""
    # A few more than run at a time: what a stop leaves runs to its end (Ray 2.60 crashes where a task that has just
    # ended is cancelled), and where there are more than CPUs, an autoscaler brings some.
    waiting: deque[ray.ObjectRef] = deque()
    for start in starts:
        waiting.append(begin(start))
        if len(waiting) > max(MIN_TASKS, 2 * ray.cluster_resources().get("CPU", 1)):
            ray.wait([waiting[0]], fetch_local=False)
            yield waiting.popleft()
    for task in waiting:
        ray.wait([task], fetch_local=False)
        yield task


def batches(
    manifest: Manifest,
    read: ReadSettings,
    *,
    seed: int,
    start: int,
    stop: int,
    layout: StepLayout,
    stored: StoredLatents | None = None,
    encoding: Stage | None = None,
    decoded: SharedRows | None = None,
) -> ray.data.Dataset:
    """The plan's positions `start` .. `stop` as blocks of one micro-batch each, in the order of the layout; see
    docs/architecture.md. Slots of padding have position -1, weight 0, a blank image and a whole hole.

    Read a shard with `iter_batches(batch_size=None)`, which hands out the blocks without copying them (read-only).

    Args:
        stored: latents that were encoded before, to be read in place of pixels.
        encoding: what makes latents of the pixels beside the training, block by block.
        decoded: rows that need not be read from their files.

    Raises InpaintError unless `stop - start` is a multiple of the global batch (the trainer rounds).
    """
    count = stop - start
    if start < 0 or count < 1:
        raise InpaintError(f"start {start}, stop {stop}: nothing to read")
    if count % layout.global_batch:
        raise InpaintError(
            f"positions {start} .. {stop} are {count}, not a multiple of the global batch {layout.global_batch}: stop "
            f"at {stop - count % layout.global_batch} or {stop + -count % layout.global_batch}"
        )
    read.check_categories(pc.unique(manifest.table["category"]).to_pylist())
    shared = ray.put((manifest, stored, decoded))
    plane = read.height * read.width
    kept = plane * (1 + read.loss_in_mask + 3 * read.keeps_image)
    if stored is not None:
        replaced = stored.variants.spec.bytes_per_sample((read.height, read.width))
    else:
        replaced = 3 * plane * (1 + manifest.has_inputs - read.keeps_image)
    bytes_per_row = kept + replaced
    blocks = count // layout.global_batch * layout.blocks
    # A task costs some 20 ms, and its blocks wait in memory for the tasks before it.
    positions = min(MAX_POSITIONS_PER_TASK, MAX_BYTES_PER_TASK // bytes_per_row, count // MIN_TASKS)
    per_task = max(1, positions // layout.micro_batch)
    threads_per_task = _threads_per_task(manifest)
    remote = stored is not None and not stored.is_local
    remote |= (stored is None or read.keeps_image) and _any_remote(manifest.table)

    def read_task(task: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        settle_reader()
        rows, latents, known = ray.get(shared)
        views = None if known is None else known.opened(read)
        plan = Plan.of(rows, seed, layout.global_batch)
        with ThreadPoolExecutor(threads_per_task) as threads, ThreadPoolExecutor(FETCHERS_PER_TASK) as pool:
            for index in task["id"]:
                first = int(index) * per_task
                for block in range(first, min(first + per_task, blocks)):
                    positions = layout.block(start, block)
                    yield read_batch(rows, plan, read, positions, threads, pool if remote else None, latents, views)

    dataset = numbers(-(-blocks // per_task)).map_batches(read_task, batch_size=None)
    # Fused with the map: it cuts what a task yields into blocks of one micro-batch, without a task of its own.
    dataset = dataset.repartition(target_num_rows_per_block=layout.micro_batch)
    if encoding is not None:
        dataset = encoding.after(dataset)
        bytes_per_row += max(0, encoding.bytes_per_row - replaced)  # larger than their pixels with some toy bases
    _configure(dataset, layout.micro_batch, bytes_per_row, encoding.free_cpus if encoding is not None else None)
    return dataset


def _configure(dataset: ray.data.Dataset, micro_batch: int, bytes_per_row: int, cpus: float | None) -> None:
    """Keep the order and the blocks' sizes, and reading from running far ahead of who consumes it."""
    context = dataset.context
    # By itself Ray Data reads until half of the object store is full: hundreds of thousands of small images, while
    # those that train on them wait for a core.
    limits = ray.data.ExecutionResources(cpu=cpus, object_store_memory=MAX_POSITIONS_AHEAD * bytes_per_row)
    context.execution_options = ray.data.ExecutionOptions(preserve_order=True, resource_limits=limits)
    # The map's own output buffer would gather 128 MiB before it lets go of a block. Above this size and below 1.5
    # times it, a batch leaves the buffer at once and uncut; the strings in it have the room in between.
    context.target_max_block_size = max(1, int(micro_batch * bytes_per_row / 1.2))
    take_blocks_at_once(dataset, min(MAX_BLOCKS_IN_HAND, MAX_BYTES_IN_HAND // (micro_batch * bytes_per_row)))
    set_pace(dataset)
    # Ray's own report is of blocks and operators; callers show rows.
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.memory_usage_poll_interval_s = None  # a thread in each worker, for that report


def _threads_per_task(manifest: Manifest) -> int:
    """A second thread uses the core of a task that has just ended (the next one starts 0.2 s later), except that small
    images wait for Python's lock; see docs/decisions.md."""
    table = manifest.table
    pixels = pc.mean(pc.multiply(table["width"].cast(pa.float64()), table["height"].cast(pa.float64()))).as_py()
    return 1 if pixels < SMALL_PIXELS else THREADS_PER_TASK


def numbers(tasks: int) -> ray.data.Dataset:
    """The numbers 0 .. `tasks` in order, one per block, so that each becomes a task."""
    if tasks <= MAX_READ_TASKS:
        return ray.data.range(tasks, override_num_blocks=tasks)
    # Ray Data prepares all read tasks before the first one runs: 1 ms and 6 KB each.
    return ray.data.range(tasks, override_num_blocks=-(-tasks // MAX_READ_TASKS)).repartition(
        target_num_rows_per_block=1
    )


def read_manifest(
    source: Source,
    *,
    limits: Limits = DEFAULT_LIMITS,
    max_bad_fraction: float = 0.05,
    quarantine: str | None = None,
    memory: str | None = None,
    crop_aspects: Sequence[float] = (),
    look: Look | None = None,
    progress: Callable[[int, int], None] | None = None,
    stop: StopToken | None = None,
) -> tuple[Manifest, list[Quarantined]]:
    """Open every file of a source and decode it once: the usable rows, in the source's order, and the others.

    Warns of rows that occur more than once, and of holes that no crop can hold; they are used.

    Args:
        max_bad_fraction: share of the rows that may be unusable.
        quarantine: where `quarantine.jsonl` is written, a path or URL.
        memory: where what files told is remembered, a path or URL: what did not change since is not opened again.
        crop_aspects: height over width of each shape of the training's samples, of which a row is seen in the nearest;
            none: holes are not looked at for it.
        look: called with each image, also with those that are remembered.
        progress: called with (files done, files).
        stop: looked at in between.

    Raises:
        TooManyBadRows: with the table of what is wrong.
        InpaintError: the source cannot be listed, or a stop was asked for.
    """
    listing = source.listing()
    table, bad, shares = SCHEMA.empty_table(), listing.quarantined, listing.shares
    if listing.table.num_rows:
        files, places = files_of(listing.table)
        # Column by column, so that each can be let go as soon as it is not needed.
        columns = dict(zip(listing.table.column_names, listing.table.columns, strict=True))
        del listing
        if memory is not None and look is None:
            files = recall(memory, files, limits)
        total, told = files.num_rows, []
        pieces = _inspect_all(files, limits, memory is not None, look)
        del files
        done = 0
        try:
            for piece in pieces:
                told.append(piece)
                done += piece.num_rows
                if stop is not None:
                    stop.check()
                if progress is not None:
                    progress(done, total)
        finally:
            # Of a first reading that was broken off, too; a later one remembers less than there is already.
            if memory is not None and (done == total or (told and not exists(memory))):
                remember(memory, pa.concat_tables(told))
        pa.default_memory_pool().release_unused()
        table, failed = rows_found(columns, places, pa.concat_tables(told), crop_aspects)
        bad = sorted(bad + failed, key=lambda row: row.row)
    if quarantine is not None:
        bad_rows.write(bad, quarantine)
    bad_rows.check(bad, len(bad) + table.num_rows, max_bad_fraction, quarantine, str(source))
    lost = set(range(len(shares))) - set(pc.unique(table["source"]).to_pylist())
    if lost and table.num_rows:
        raise InpaintError(
            f"joined source {min(lost) + 1} of {len(shares)} has no usable row to keep the ratio:\n"
            f"{bad_rows.table(bad, len(bad) + table.num_rows)}"
        )
    return Manifest(table, shares), bad


def _inspect_all(files: pa.Table, limits: Limits, remember: bool, look: Look | None) -> Iterator[pa.Table]:
    """What the files tell, in their order, some at a time; from plain Ray tasks, which cost the driver nothing while it
    waits."""
    count, remote, stored = files.num_rows, _any_remote(files), ray.put(files)
    del files
    pa.default_memory_pool().release_unused()
    per_task = max(1, min(MAX_FILES_PER_TASK, count // MIN_TASKS), -(-count // MAX_INSPECTING_TASKS))

    @ray.remote(num_cpus=1)
    def inspect_task(files: pa.Table, start: int) -> pa.Table:
        with ThreadPoolExecutor(FETCHERS_PER_TASK) as pool:
            return inspect_files(files.slice(start, per_task), limits, pool if remote else None, remember, look)

    starts = range(0, count, per_task)
    yield from map(ray.get, _in_turn(lambda start: inspect_task.remote(stored, start), starts))


def _any_remote(table: pa.Table) -> bool:
    return any(not open_root(root).is_local for root in pc.unique(table["root"]).to_pylist())
