"""The one training loop. It never asks which workload it runs, and imports no ray.

Position counts samples. Every micro-batch carries its positions, and the loop asserts that they are the plan's, so a
reader that loses, repeats or reorders rows stops the run instead of spoiling it. On a GPU a step's figures are read
while the next one runs, so that it never waits for them.
"""

import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from inpaint.errors import InpaintError
from inpaint.train.checkpoint import VALIDATION_LOSS, CheckpointStore, Progress
from inpaint.train.engine import Engine
from inpaint.train.objective import MicroBatch, PaintedSample

StepReport = dict[str, float]
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "L4": 121e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
}
"""Dense bf16 (T4: fp16) peak in FLOP/s by words of the device's name, from the makers' data sheets."""


@dataclass(frozen=True)
class ValidationSet:
    """A fixed set of samples with their holes, timesteps and noise, whose loss says how a run goes: one worker's part,
    in memory.

    The loss is the same number for any number of workers (but for rounding), for each sample's is a function of its
    position in the set.
    """

    batches: Sequence[MicroBatch]
    every: int
    """Samples between validations."""
    pictures: int
    """Samples that the first worker paints."""
    on_pictures: Callable[[int, list[PaintedSample]], None]
    """Called on the first rank with (samples trained on, what was painted)."""

    def run(self, engine: Engine, samples: int) -> float:
        """The mean loss of the set, of what would be exported. Collective.

        Raises:
            InpaintError: no row of it can be read any more.
        """
        with engine.evaluating():
            total = torch.zeros(2, dtype=torch.float64, device=engine.device)
            for batch in self.batches:
                total[0] += engine.validation_loss(batch)
                total[1] += float(batch["weight"].sum())
            dist.all_reduce(total)
            self._paint(engine, samples)
        if not total[1]:
            raise InpaintError("no row of the validation can be read: restore its files, or set validation.samples 0")
        return float(total[0] / total[1])

    def _paint(self, engine: Engine, samples: int) -> None:
        # Under ZeRO 3 each forward gathers the parameters of all ranks: all of them paint, each its own samples.
        is_first, is_sharded = dist.get_rank() == 0, engine.settings.zero_stage == 3
        if not (self.pictures and self.batches and (is_first or is_sharded)):
            return
        painted: list[PaintedSample] = []
        left = self.pictures
        for batch in self.batches:
            if left <= 0:
                break
            pictures = engine.objective.paint(batch, left)
            left -= len(batch["weight"])
            # Those of padding and of rows that could not be read are not shown.
            painted += [picture for picture, weight in zip(pictures, batch["weight"], strict=False) if weight]
        if is_first and painted:
            self.on_pictures(samples, painted)


@dataclass(kw_only=True)
class Run:
    """What a worker needs to train."""

    engine: Engine
    store: CheckpointStore
    batches: Iterator[MicroBatch]
    validation: ValidationSet | None = None
    total: int
    """Samples of the whole run."""
    progress: Progress
    """Where it starts."""
    exchange: Callable[[StepReport], bool] = field(default=lambda report: False)
    """Called on rank 0 with figures for the console; true asks for a checkpoint and an end."""
    unread: int = 0
    """Samples so far whose files could not be read."""
    asked_to_stop: bool = False
    """Whether an end was asked for: before the first step on any rank, then by what `exchange` answers on rank 0."""
    flops_per_sample: float | None = None
    """Of forward and backward; counted at the first step on a GPU."""
    on_validation: Callable[[dict[str, float]], None] = field(default=lambda metrics: None)
    """Called on all ranks after each validation."""


@dataclass(frozen=True)
class _Step:
    """A step that was begun: its figures may still be on their way."""

    progress: Progress
    figures: Tensor
    """On the CPU, summed over all ranks: loss, seconds waited for data, ranks that were asked to stop, samples that
    could not be read."""
    arrived: torch.cuda.Event | None
    """Past once they are there; None on a CPU, where they are at once."""


def train(run: Run) -> Progress:
    """Train to `run.total` samples, or until `exchange` asks to stop; returns where it ended, checkpointed.

    Raises:
        FloatingPointError: the loss or a weight is not finite; nothing of it was checkpointed.
    """
    settings, validation, progress = run.engine.settings, run.validation, run.progress
    run.unread = progress.unread
    may_wait = run.engine.device.type != "cuda"
    best = run.store.best()
    lowest = float("inf") if best is None else best[1]
    wishes = torch.tensor(float(run.asked_to_stop), device=run.engine.device)
    dist.all_reduce(wishes)
    stop = bool(wishes > 0)
    before: _Step | None = None
    while progress.samples < run.total:
        step = _step(run, progress)
        done, progress = progress.samples, step.progress
        if before is not None:
            stop = _read(run, before) or stop
        is_last = progress.samples >= run.total
        validates = validation is not None and (is_last or _passed(validation.every, done, progress))
        saves = is_last or _passed(settings.checkpoint_every, done, progress)
        before = None if may_wait or stop or validates or saves else step
        if before is None:
            stop = _read(run, step) or stop
        if stop or validates or saves:
            progress = replace(progress, unread=run.unread, metrics={"loss": float(step.figures[0])})
        if validates:
            progress = _validate(run, progress)
            saves = saves or progress.metrics[VALIDATION_LOSS] < lowest
            lowest = min(lowest, progress.metrics[VALIDATION_LOSS])
        if saves or stop:
            _save(run, progress)
        if stop:
            break
    return progress


def _step(run: Run, progress: Progress) -> _Step:
    """Begin one optimizer step, and the sum of its figures over all ranks."""
    started = time.perf_counter()
    layout = run.engine.layout
    wanted = layout.positions(progress.samples, dist.get_rank())
    batches = [_next(run, positions) for positions in wanted]
    waited = time.perf_counter() - started
    scale = run.engine.settings.lr_scale(progress.samples, run.total)
    counts = run.engine.device.type == "cuda" and run.flops_per_sample is None
    with FlopCounterMode(display=False) if counts else nullcontext() as counter:
        loss = run.engine.train_step(batches, scale)
    if counter is not None:
        run.flops_per_sample = counter.get_total_flops() / (layout.accumulation * layout.micro_batch)
    # Filled in place: a copy from here to a GPU would wait for it.
    figures = torch.zeros(4, dtype=torch.float64, device=run.engine.device)
    figures[0] = loss
    figures[1].fill_(waited)
    figures[2].fill_(float(run.asked_to_stop))
    figures[3].fill_(sum(bool(error) for batch in batches for error in batch["error"]))
    if layout.workers > 1:
        dist.all_reduce(figures)
    arrived = None
    if figures.device.type == "cuda":
        # Without an event of its own, reading them would wait for the next step, which is queued behind this one.
        figures = torch.empty_like(figures, device="cpu", pin_memory=True).copy_(figures, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
    samples = progress.samples + layout.global_batch
    return _Step(replace(progress, samples=samples, steps=run.engine.steps), figures, arrived)


def _next(run: Run, wanted: np.ndarray) -> MicroBatch:
    batch = next(run.batches, None)
    assert batch is not None, f"nothing more was read, the plan says {wanted}"
    got = np.asarray(batch["position"])
    assert np.array_equal(got, wanted), f"positions {got} were read, the plan says {wanted}"
    for position, error in zip(batch["position"], batch["error"], strict=True):
        if error:
            warnings.warn(f"position {position} could not be read and counts nothing: {error}", stacklevel=2)
    return batch


def _read(run: Run, step: _Step) -> bool:
    """A step's figures, once they are there: reported on rank 0; whether a rank was asked to stop."""
    if step.arrived is not None:
        step.arrived.synchronize()
    loss, waited, stop, unread = step.figures.tolist()
    run.unread += int(unread)
    if not np.isfinite(loss):
        raise _diverged(run, step.progress, f"the loss is {loss}")
    if dist.get_rank() == 0:
        report = {"samples": step.progress.samples, "total": run.total, "loss": loss}
        report |= {"waited": waited / run.engine.layout.workers, "time": time.perf_counter()}
        if run.flops_per_sample is not None:
            peak = peak_flops(torch.cuda.get_device_name(run.engine.device))
            report["flops_per_sample"] = run.flops_per_sample
            report["peak_flops"] = (peak or 0.0) * run.engine.layout.workers
            report["memory"] = float(torch.cuda.max_memory_allocated(run.engine.device))
        run.asked_to_stop |= run.exchange(report)
    return stop > 0


def _diverged(run: Run, progress: Progress, what: str) -> FloatingPointError:
    first = progress.samples - run.engine.layout.global_batch
    return FloatingPointError(
        f"{what} at samples {first} to {progress.samples - 1}: lower the learning rate, or use bf16 or fp32 instead of "
        "fp16. The last checkpoint is from before"
    )


def _passed(every: int, done: int, progress: Progress) -> bool:
    """Whether a multiple of `every` lies between the samples done before a step and those after it."""
    return progress.samples // every > done // every


def _validate(run: Run, progress: Progress) -> Progress:
    """The progress with the validation's loss among its metrics. Collective."""
    assert run.validation is not None
    loss = run.validation.run(run.engine, progress.samples)
    progress = replace(progress, metrics={**progress.metrics, VALIDATION_LOSS: loss})
    if dist.get_rank() == 0:
        run.asked_to_stop |= run.exchange({"samples": progress.samples, "total": run.total, VALIDATION_LOSS: loss})
    run.on_validation({"samples": progress.samples, **progress.metrics})
    return progress


def _save(run: Run, progress: Progress) -> None:
    """Gather the state on all ranks and write it on the first. Collective."""
    state = run.engine.gather()
    wrong = [name for name, tensor in state["trained"].items() if not tensor.isfinite().all()]
    if wrong:  # a finite loss may have had gradients that are not
        raise _diverged(run, progress, f"{wrong[0]} is no longer finite")
    if dist.get_rank() == 0:
        run.store.save(state, progress)
    dist.barrier()


def peak_flops(device_name: str) -> float | None:
    """The peak of a GPU by its name, or None where it is not listed."""
    return next((peak for name, peak in PEAK_FLOPS.items() if re.search(rf"\b{name}\b", device_name)), None)
