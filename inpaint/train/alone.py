"""One training in this process, which also reads its samples: for many small ones side by side, each on one device.

Guarantees: the loop, the plan, the checkpoints and so the result are those of a training on Ray Train with one worker;
either goes on where the other ended. A process may train one after another: nothing is imported twice, and what one
held is free when the next begins. Not covered: several workers.
"""

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from inpaint.data.sample import read_batch, settle_reader
from inpaint.train.checkpoint import CHECKPOINTS, CheckpointStore, Progress
from inpaint.train.engine import Engine, ZeroEngine
from inpaint.train.loop import Run, train
from inpaint.train.objective import MicroBatch
from inpaint.train.start import TRAIN_ROWS, VALIDATION_ROWS, LatentReading
from inpaint.train.trainer import Training, starting_point
from inpaint.train.worker import validation_set


def train_alone(training: Training, device: torch.device, threads: int) -> Progress:
    """Train to the end, from the newest checkpoint on; returns where it ended.

    Args:
        threads: that read samples.

    Raises:
        InpaintError, FloatingPointError: as on Ray Train.
    """
    recipe, settings = training.recipe, training.recipe.train

    def engine() -> Engine:
        return ZeroEngine(recipe.objective(device), settings, settings.layout(1), device)

    ended = train_here(training, engine, device, threads)
    # The engine and its module hold each other: on a GPU the next training needs their memory now.
    gc.collect()
    return ended


def train_here(training: Training, engine_of: Callable[[], Engine], device: torch.device, threads: int) -> Progress:
    """The same with an engine that is made once it is needed."""
    recipe, settings, output = training.recipe, training.recipe.train, training.output
    progress = starting_point(training)
    if progress.samples >= training.total:
        return progress
    training.rows.save(f"{output}/{TRAIN_ROWS}")
    if training.held_out is not None:
        training.held_out.save(f"{output}/{VALIDATION_ROWS}")
    _join_a_group_of_one(device)
    store = CheckpointStore(f"{output}/{CHECKPOINTS}", keep=settings.keep_checkpoints)
    found, engine = store.latest(set_aside=True), engine_of()
    if found is not None:
        state, progress = found
        engine.load(state, steps=progress.steps)
    with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(1) as ahead:
        run = Run(
            engine=engine,
            store=store,
            batches=_read_ahead(training, progress.samples, readers, ahead),
            validation=validation_set(recipe, output, threads),
            total=training.total,
            progress=progress,
        )
        return train(run)


def first_sample(training: Training) -> MicroBatch:
    """The one that the training goes on with, as a batch of one row."""
    start = starting_point(training).samples
    with ThreadPoolExecutor(1) as readers:
        return _reader(training, range(start, start + 1), readers)(np.array([start]))


def _read_ahead(training: Training, start: int, readers: Executor, ahead: Executor) -> Iterator[MicroBatch]:
    """Micro-batches in the plan's order, each read while the one before is trained on."""
    settings = training.recipe.train
    layout, read = settings.layout(1), _reader(training, range(start, training.total), readers)
    count = (training.total - start) // settings.global_batch * layout.blocks
    coming = ahead.submit(read, layout.block(start, 0))
    for index in range(count):
        now = coming.result()
        if index + 1 < count:
            coming = ahead.submit(read, layout.block(start, index + 1))
        yield now


def _reader(training: Training, span: range, threads: Executor) -> Callable[[np.ndarray], MicroBatch]:
    """What reads the rows at positions of the plan. Args: span: those that will be asked for."""
    settle_reader()
    rows, plan, read = training.rows, training.plan, training.recipe.read_settings()
    stored = LatentReading.of_cache(training.recipe.how_encoded()).stored(rows, read, plan, span)
    decoded = None if training.decoded is None else training.decoded.opened(read)
    return lambda positions: read_batch(rows, plan, read, positions, threads, stored=stored, decoded=decoded)


def _join_a_group_of_one(device: torch.device) -> None:
    if dist.is_initialized():
        return
    os.environ |= {"LOCAL_RANK": "0"}
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    store = Path(tempfile.mkdtemp(), "store")
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=0, world_size=1)
