"""A Ray Train worker's part of a training, once its reading has begun (`start.py`)."""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import ray
import ray.cloudpickle
import ray.train
import torch.distributed as dist
from ray.train.torch import get_device

from inpaint.data.plan import PADDING, Plan
from inpaint.data.rows import Manifest
from inpaint.data.sample import read_batch, settle_reader
from inpaint.data.storage import write_file
from inpaint.export.grid import grid
from inpaint.paint.photos import encode_png
from inpaint.train.channel import Exchange
from inpaint.train.checkpoint import Progress, State
from inpaint.train.engine import ZeroEngine
from inpaint.train.loop import Run, ValidationSet, train
from inpaint.train.objective import MicroBatch, PaintedSample
from inpaint.train.recipe import Recipe
from inpaint.train.start import TRAIN_ROWS, VALIDATION_ROWS, WorkerConfig

if TYPE_CHECKING:  # workers have no console
    from inpaint.train.console import PaintedValidation

_VALIDATION_SEED = 2**62
"""Of the plan by which a validation set is chosen from its rows, whatever the run's own seed."""


def train_on(batches: Iterator[MicroBatch], config: WorkerConfig, found: tuple[State, Progress] | None) -> None:
    """Train to the end, or until the channel says to stop. Args: found: the checkpoint that `batches` follow."""
    recipe, start = ray.cloudpickle.loads(config.pickled)
    settings, device, channel = config.train, get_device(), config.channel
    engine = ZeroEngine(recipe.objective(device), settings, settings.layout(dist.get_world_size()), device)
    if found is not None:
        state, start = found
        engine.load(state, steps=start.steps)
    exchange = Exchange(channel)
    run = Run(
        engine=engine,
        store=config.store,
        batches=batches,
        validation=validation_set(recipe, config.output, config.threads, config.channel.tell.remote),
        total=config.total,
        progress=start,
        exchange=exchange,
        asked_to_stop=ray.get(channel.tell.remote()),
        on_validation=ray.train.report,
    )
    ended = train(run)
    exchange.flush()
    ray.train.report({"samples": ended.samples, **ended.metrics})


def validation_set(
    recipe: Recipe, output: str, threads: int, tell: Callable[["PaintedValidation"], object] | None = None
) -> ValidationSet | None:
    """This worker's part of the set, which it reads itself: so few samples are not worth a stream of their own.

    Args:
        output: of the training; pictures are written to its `validation/`.
        tell: called with it as well.
    """
    settings = recipe.validation
    if not settings.samples:
        return None
    rows = Manifest.load(f"{output}/{VALIDATION_ROWS if settings.is_held_out else TRAIN_ROWS}")
    # Its texts are told and its pictures are not mirrored, whatever training does; each sample has a hole of its own.
    read = replace(recipe.read_settings(), caption_dropout=0.0, flip_probability=0.0, bank=None)
    plan = Plan.of(rows, _VALIDATION_SEED)
    settle_reader()
    with ThreadPoolExecutor(threads) as pool:
        held = [read_batch(rows, plan, read, positions, pool) for positions in _held(recipe, rows, plan)]
    for error in filter(None, (error for batch in held for error in batch["error"])):
        warnings.warn(f"a row of the validation could not be read and counts nothing: {error}", stacklevel=2)

    def on_pictures(samples: int, painted: list[PaintedSample]) -> None:
        together = grid([sample.picture for sample in painted], columns=4)
        write_file(output, f"validation/samples-{samples:012d}.png", encode_png(together))
        if tell is not None:
            names = sorted({name for sample in painted for name in sample.figures})
            told = {name: [s.figures[name] for s in painted if name in s.figures] for name in names}
            tell((samples, together, {name: float(np.mean(values)) for name, values in told.items()}))

    every = settings.every or recipe.train.checkpoint_every
    return ValidationSet(held, every, settings.pictures, on_pictures)


def _held(recipe: Recipe, rows: Manifest, plan: Plan) -> Iterator[np.ndarray]:
    """Positions of this worker's micro-batches, each of one bucket: of every bucket as many as each worker has, the
    first ones with the first worker, which paints them."""
    positions = np.arange(recipe.validation.samples)
    of_each = np.zeros(len(positions)) if rows.buckets is None else rows.buckets[plan.lookup(positions)[1]]
    _, firsts = np.unique(of_each, return_index=True)
    for bucket in of_each[np.sort(firsts)]:
        alike = positions[of_each == bucket]
        layout = recipe.train.layout(dist.get_world_size(), len(alike))
        slots = np.full((layout.workers, layout.accumulation, layout.micro_batch), PADDING)
        slots.flat[: len(alike)] = alike
        yield from slots[dist.get_rank()]
