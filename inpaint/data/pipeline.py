"""The wiring on Ray Data: candidates -> manifest, plan -> batches. The only file of data/ that imports ray.

Guarantees of `batches`: blocks of exactly one micro-batch, in the order of the plan; `streaming_split(W, equal=True)`
deals them in turn, so a step's positions are the next global batch for any W; a file that vanished becomes a row
with weight 0, never a crash and never a shifted position. Not covered: a file whose content changed is read as it is.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import ray
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

from inpaint.data import quarantine
from inpaint.data.decode import DEFAULT_LIMITS, Limits
from inpaint.data.manifest import Manifest
from inpaint.data.plan import Plan
from inpaint.data.quarantine import Quarantined
from inpaint.data.reading import Found, inspect_or_quarantine, read_batch, rows_found
from inpaint.data.sample import ReadSettings
from inpaint.data.sources import Candidate, Source
from inpaint.data.storage import Root, open_root
from inpaint.errors import InpaintError

MAX_POSITIONS_PER_TASK = 1024
MAX_BYTES_PER_TASK = 256 * 2**20
MAX_POSITIONS_AHEAD = 16 * MAX_POSITIONS_PER_TASK
MAX_BLOCKS_IN_HAND = 64
MAX_BYTES_IN_HAND = 64 * 2**20
THREADS_PER_TASK = 2
FETCHERS_PER_TASK = 16
SMALL_PIXELS = 256**2
MIN_TASKS = 16  # so that short runs are spread over the cores, too
MAX_READ_TASKS = 1024
PAUSES_S = (0.002, 0.05)


def execution_options(manifest: Manifest, settings: ReadSettings) -> ray.data.ExecutionOptions:
    """What keeps the order, and reading from running far ahead of who consumes it: pass it wherever Ray takes execution
    options, they replace the dataset's own."""
    # By itself Ray Data reads until half of the object store is full: hundreds of thousands of small images, while
    # those that train on them wait for a core.
    ahead = MAX_POSITIONS_AHEAD * _bytes_per_row(manifest, settings)
    return ray.data.ExecutionOptions(
        preserve_order=True, resource_limits=ray.data.ExecutionResources(object_store_memory=ahead)
    )


def data_config(manifest: Manifest, settings: ReadSettings) -> Any:
    """The `dataset_config` of a Ray Train trainer under which each worker gets its blocks in turn."""
    from ray.train import DataConfig

    return DataConfig(execution_options=execution_options(manifest, settings), enable_shard_locality=False)


def batches(
    manifest: Manifest,
    settings: ReadSettings,
    *,
    seed: int,
    start: int,
    stop: int,
    micro_batch: int,
    workers: int = 1,
    filesystem: pafs.FileSystem | None = None,
) -> ray.data.Dataset:
    """The plan's positions `start` .. `stop` as blocks of one micro-batch each; see docs/architecture.md.

    Read a shard with `iter_batches(batch_size=None)`, which hands out the blocks without copying them (read-only).
    Raises InpaintError unless `stop - start` is a multiple of `workers * micro_batch` (the trainer rounds).
    """
    count = stop - start
    if start < 0 or count < 1 or micro_batch < 1 or workers < 1:
        raise InpaintError(f"start {start}, stop {stop}, micro_batch {micro_batch}, workers {workers}: nothing to read")
    dealt = workers * micro_batch
    if count % dealt:
        raise InpaintError(
            f"positions {start} .. {stop} are {count}, not a multiple of {workers} workers x micro-batch "
            f"{micro_batch}: stop at {stop - count % dealt} or {stop + -count % dealt}"
        )
    settings.check_categories({row.category for row in manifest.rows})
    plan = Plan(seed, len(manifest))
    root = open_root(manifest.root, filesystem)
    rows = ray.put(manifest.table())
    with_input = manifest.has_inputs
    bytes_per_row = _bytes_per_row(manifest, settings)
    per_task = _positions_per_task(count, micro_batch, bytes_per_row)
    threads_per_task = _threads_per_task(manifest)

    def read_task(task: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        table = ray.get(rows)
        with ThreadPoolExecutor(threads_per_task) as threads, ThreadPoolExecutor(FETCHERS_PER_TASK) as pool:
            fetchers = None if root.is_local else pool
            for index in task["id"]:
                first = start + int(index) * per_task
                for position in range(first, min(first + per_task, stop), micro_batch):
                    positions = np.arange(position, position + micro_batch, dtype=np.int64)
                    yield read_batch(table, root, plan, settings, positions, with_input, threads, fetchers)

    dataset = _numbers(-(-count // per_task)).map_batches(read_task, batch_size=None)
    # Fused with the map: it cuts what a task yields into blocks of one micro-batch, without a task of its own.
    dataset = dataset.repartition(target_num_rows_per_block=micro_batch)
    _quiet(dataset)
    dataset.context.execution_options = execution_options(manifest, settings)
    # The map's own output buffer would gather 128 MiB before it lets go of a block. Above this size and below 1.5
    # times it, a batch leaves the buffer at once and uncut; the strings in it have the room in between.
    dataset.context.target_max_block_size = max(1, int(micro_batch * bytes_per_row / 1.2))
    # Each turn of Ray Data's loop takes this many blocks from a task: two, by itself, however small they are. Then the
    # numbers of a long run alone would take minutes.
    in_hand = min(MAX_BLOCKS_IN_HAND, MAX_BYTES_IN_HAND // (micro_batch * bytes_per_row))
    dataset.context._max_num_blocks_in_streaming_gen_buffer = max(2, in_hand)
    return dataset


def _positions_per_task(count: int, micro_batch: int, bytes_per_row: int) -> int:
    """A multiple of the micro-batch. A task costs some 20 ms, and its blocks wait in memory for the tasks before it."""
    wanted = min(MAX_POSITIONS_PER_TASK, MAX_BYTES_PER_TASK // bytes_per_row, count // MIN_TASKS)
    return max(1, wanted // micro_batch) * micro_batch


def _bytes_per_row(manifest: Manifest, settings: ReadSettings) -> int:
    """Of a sample's image, input and hole."""
    return settings.resolution**2 * (7 if manifest.has_inputs else 4)


def _threads_per_task(manifest: Manifest) -> int:
    """A second thread uses the core of a task that has just ended (the next one starts 0.2 s later), except that small
    images wait for Python's lock; see docs/decisions.md."""
    pixels = sum(row.width * row.height for row in manifest.rows) / len(manifest)
    return 1 if pixels < SMALL_PIXELS else THREADS_PER_TASK


def _numbers(tasks: int) -> ray.data.Dataset:
    """The numbers 0 .. `tasks` in order, one per block, so that each becomes a task."""
    if tasks <= MAX_READ_TASKS:
        return ray.data.range(tasks, override_num_blocks=tasks)
    # Ray Data prepares all read tasks before the first one runs: 1 ms and 6 KB each.
    return ray.data.range(tasks, override_num_blocks=-(-tasks // MAX_READ_TASKS)).repartition(
        target_num_rows_per_block=1
    )


class _Pace(ExecutionCallback):
    """Lets Ray Data's scheduling loop wait after a turn that did nothing, longer after each. By itself it turns without
    a pause where training is slower than reading, and takes most of a core from it; see docs/decisions.md."""

    def __init__(self) -> None:
        self.done = 0
        self.pause = PAUSES_S[0]

    def on_execution_step(self, executor: Any) -> None:
        ops = [op.metrics for op in executor._topology]
        done = sum(m.num_tasks_submitted + m.num_tasks_finished for m in ops)
        done += sum(m.num_task_outputs_generated + m.num_outputs_taken for m in ops)
        if done == self.done:
            time.sleep(self.pause)
            self.pause = min(2 * self.pause, PAUSES_S[1])
        else:
            self.pause = PAUSES_S[0]
        self.done = done


def _quiet(dataset: ray.data.Dataset) -> None:
    dataset.context.custom_execution_callback_classes = [_Pace]
    # Ray's own report is of blocks and operators; callers show rows.
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    dataset.context.memory_usage_poll_interval_s = None  # a thread in each worker, for that report


def build_manifest(
    source: Source,
    *,
    limits: Limits = DEFAULT_LIMITS,
    max_bad_fraction: float = 0.05,
    quarantine_path: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Manifest, list[Quarantined]]:
    """Open every file of a source and decode it once: the usable rows, in the source's order, and the others.

    Writes `quarantine_path` where given. Raises TooManyBadRows above `max_bad_fraction`, with the table of what
    is wrong. Warns of rows that occur more than once; they are used. `progress` is called with (rows done, rows).
    """
    listing = source.listing()
    found, bad = [], list(listing.quarantined)
    outcomes = _inspect_all(listing.root, listing.candidates, limits)
    for done, (candidate, outcome) in enumerate(zip(listing.candidates, outcomes, strict=True), start=1):
        if progress is not None:
            progress(done, len(listing.candidates))
        if isinstance(outcome, Quarantined):
            bad.append(outcome)
        else:
            found.append((candidate, outcome))
    bad.sort(key=lambda row: row.row)
    total = len(found) + len(bad)
    if quarantine_path is not None:
        quarantine.write(bad, quarantine_path)
    quarantine.check(bad, total, max_bad_fraction, str(quarantine_path) if quarantine_path else None)
    return Manifest(rows_found(found), listing.name), bad


def _inspect_all(root: Root, candidates: list[Candidate], limits: Limits) -> Iterator[Found | Quarantined]:
    """One outcome per candidate, in their order, from Ray Data tasks."""
    if not candidates:
        return
    columns = [f.name for f in fields(Candidate)]
    # An Arrow table is read in place by every worker; a list would be unpickled whole by every task.
    table = ray.put(pa.table({name: [getattr(c, name) for c in candidates] for name in columns}))
    per_task = max(1, min(64, len(candidates) // MIN_TASKS))

    def inspect_task(task: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for index in task["id"]:
            part = ray.get(table).slice(int(index) * per_task, per_task)
            lines = [inspect_or_quarantine(Candidate(**line), root, limits) for line in part.to_pylist()]
            yield {name: np.array([line[name] for line in lines], dtype=object) for name in lines[0]}

    dataset = _numbers(-(-len(candidates) // per_task))
    dataset = dataset.map_batches(inspect_task, batch_size=None)
    _quiet(dataset)
    dataset.context.execution_options = ray.data.ExecutionOptions(preserve_order=True)
    for line in dataset.iter_rows():
        if line["reason"]:
            yield Quarantined(**{name: line[name] for name in ("row", "name", "field", "reason", "detail")})
        else:
            yield int(line["width"]), int(line["height"]), str(line["digest"])
