"""The one training loop. It never asks which workload it runs, and imports no ray.

Position counts samples. Every micro-batch carries its positions, and the loop asserts that they are the plan's, so a
reader that loses, repeats or reorders rows stops the run instead of spoiling it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from inpaint.data.plan import StepLayout
from inpaint.train.checkpoint import CheckpointStore, Progress
from inpaint.train.ema import MovingAverage
from inpaint.train.engine import ZeroEngine
from inpaint.train.flops import peak_flops
from inpaint.train.objective import Batch
from inpaint.train.settings import TrainSettings

Report = dict[str, float]


@dataclass(kw_only=True)
class Run:
    """What a worker needs to train."""

    settings: TrainSettings
    engine: ZeroEngine
    ema: MovingAverage | None
    store: CheckpointStore
    batches: Iterator[Batch]
    total: int
    """Samples of the whole run."""
    progress: Progress
    """Where it starts."""
    exchange: Callable[[Report], bool] = field(default=lambda report: False)
    """Called on rank 0 after every step with figures for the console; true asks for a checkpoint and an end."""
    asked_to_stop: bool = False
    """Whether an end was asked for: before the first step on any rank, then by what `exchange` answers on rank 0."""
    flops_per_sample: float | None = None
    """Of forward and backward; counted at the first step on a GPU."""
    on_bad_row: Callable[[int, str], None] = field(default=lambda position, error: None)
    """Called with the position of a row that could no longer be read."""


def train(run: Run) -> Progress:
    """Train to `run.total` samples, or until `exchange` asks to stop; returns where it ended, checkpointed."""
    settings, progress = run.settings, run.progress
    saved = progress.samples
    while progress.samples < run.total:
        started = time.perf_counter()
        batches = [_next(run, progress.samples, micro) for micro in range(settings.accumulation)]
        waited = time.perf_counter() - started
        loss = _step(run, batches, settings.lr_scale(progress.samples, run.total))
        samples = progress.samples + settings.global_batch
        progress = replace(progress, samples=samples, steps=progress.steps + 1, metrics={"loss": loss})
        if run.ema is not None:
            run.ema.update(run.engine, settings.global_batch)
        loss, waited, stop = _agree(run, progress, loss, waited)
        progress = replace(progress, metrics={"loss": loss})
        _report(run, progress, waited, time.perf_counter() - started)
        due = samples // settings.checkpoint_every > saved // settings.checkpoint_every
        if due or stop or samples >= run.total:
            save(run, progress)
            saved = samples
        if stop:
            break
    return progress


def save(run: Run, progress: Progress) -> None:
    """Gather the state on all ranks and write it on the first. Collective."""
    tensors = run.engine.gather()
    if run.ema is not None:
        tensors["ema"] = {name: tensor.cpu() for name, tensor in run.ema.average.items()}
    if dist.get_rank() == 0:
        run.store.save(tensors, progress)
    dist.barrier()


def _step(run: Run, batches: list[Batch], lr_scale: float) -> float:
    if run.engine.device.type != "cuda" or run.flops_per_sample is not None:
        return run.engine.train_step(batches, lr_scale)
    with FlopCounterMode(display=False) as counter:
        loss = run.engine.train_step(batches, lr_scale)
    run.flops_per_sample = counter.get_total_flops() / sum(len(batch["position"]) for batch in batches)
    return loss


def _next(run: Run, samples: int, micro: int) -> Batch:
    batch = next(run.batches, None)
    settings = run.settings
    layout = StepLayout(
        global_batch=settings.global_batch, max_micro_batch=settings.micro_batch, workers=settings.workers
    )
    expected = layout.positions(samples, dist.get_rank())[micro]
    assert batch is not None, f"nothing more was read, the plan says {expected}"
    got = np.asarray(batch["position"])
    assert np.array_equal(got, expected), f"positions {got} were read, the plan says {expected}"
    for position, error in zip(batch["position"], batch["error"], strict=True):
        if error:
            run.on_bad_row(int(position), str(error))
    return batch


def _agree(run: Run, progress: Progress, loss: float, waited: float) -> tuple[float, float, bool]:
    """One small all-reduce: the mean loss and waiting time, and whether a rank was asked to stop.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    shared = torch.tensor([loss, waited, float(run.asked_to_stop)], dtype=torch.float64)
    if run.settings.workers > 1:
        shared = shared.to(run.engine.device)
        dist.all_reduce(shared)
    loss, waited, stop = (float(value) for value in shared)
    loss, waited = loss / run.settings.workers, waited / run.settings.workers
    if not np.isfinite(loss):
        first = progress.samples - run.settings.global_batch
        raise FloatingPointError(
            f"the loss is {loss} at samples {first} to {progress.samples - 1}: lower the learning rate, or use "
            "bf16 or fp32 instead of fp16. The last checkpoint is from before"
        )
    return loss, waited, stop > 0


def _report(run: Run, progress: Progress, waited: float, seconds: float) -> None:
    """The first rank's report of a step; the answer is acted on in the next step, by all ranks at once."""
    if dist.get_rank() != 0:
        return
    report = {"samples": progress.samples, "total": run.total, "loss": progress.metrics["loss"]}
    report |= {"waited": waited, "seconds": seconds, "time": time.perf_counter()}
    if run.flops_per_sample is not None:
        peak = peak_flops(torch.cuda.get_device_name(run.engine.device))
        report["flops_per_sample"] = run.flops_per_sample
        report["peak_flops"] = (peak or 0.0) * run.settings.workers
    run.asked_to_stop = run.exchange(report) or run.asked_to_stop
