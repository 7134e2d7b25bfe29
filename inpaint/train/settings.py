"""The settings that every workload's training shares. Progress and schedules are counted in samples, never in steps."""

import dataclasses
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from inpaint.data.plan import StepLayout
from inpaint.errors import InpaintError

_MAY_CHANGE = "may change on a resume"


def may_change(default: Any = dataclasses.MISSING) -> Any:
    """A field that may be another one when a run is resumed: it decides how it is computed, or for how long, and not
    what is learned."""
    return dataclasses.field(default=default, metadata={_MAY_CHANGE: True})


def plain(value: Any, *, fixed_only: bool = False) -> Any:
    """A configuration as plain values for JSON: dataclasses become dicts, tuples lists.

    Args:
        fixed_only: leave out the fields that `may_change`.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f for f in dataclasses.fields(value) if not (fixed_only and f.metadata.get(_MAY_CHANGE))]
        return {f.name: plain(getattr(value, f.name), fixed_only=fixed_only) for f in fields}
    if isinstance(value, dict):
        return {str(name): plain(item, fixed_only=fixed_only) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item, fixed_only=fixed_only) for item in value]
    return str(value) if isinstance(value, StrEnum) else value


def arguments_of(config: Any, default: Any) -> list[str]:
    """What must be given on a command line for `config` to be parsed, beside what gives `default`."""

    def differing(now: Any, was: Any, name: str) -> list[str]:
        if dataclasses.is_dataclass(now):
            fields = [field.name for field in dataclasses.fields(now)]
            return [word for f in fields for word in differing(getattr(now, f), getattr(was, f), f"{name}.{f}")]
        if now == was:
            return []
        flag = f"--{name.removeprefix('.').replace('_', '-')}"
        if isinstance(was, bool):
            above, _, last = flag.removeprefix("--").rpartition(".")
            return [flag if now else f"--{above}.no-{last}" if above else f"--no-{last}"]
        return [flag, *map(str, now if isinstance(now, tuple) else [now])]

    return differing(config, default, "")


class Precision(StrEnum):
    """Compute type of a forward and backward."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class RateSchedule(StrEnum):
    """How learning rates fall after the warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class Optimizer(StrEnum):
    """What turns gradients into steps."""

    ADAMW = "adamw"
    SGD = "sgd"
    """With a momentum of 0.9."""
    ADAFACTOR = "adafactor"
    """Shazeer 2018, at the rates that are given: second moments by rows and columns, no first ones."""
    ADAMW_8BIT = "adamw8bit"
    """Dettmers 2021: AdamW whose moments take a byte each. Needs bitsandbytes."""
    PRODIGY = "prodigy"
    """Mishchenko 2023: finds the learning rate; those that are given must be 1. Needs prodigyopt."""


MOMENTS = {Optimizer.ADAMW: ("exp_avg", "exp_avg_sq"), Optimizer.SGD: ("momentum_buffer",)}
"""What is kept of each element of a parameter, by those that work on parts of parameters, as ZeRO's stages from 1 up
have them."""


class Offload(StrEnum):
    """What ZeRO keeps in the CPUs' memory."""

    NONE = "none"
    OPTIMIZER = "optimizer"
    """The optimizer's states and the master weights, and the step is made there."""
    PARAMETERS = "parameters"
    """The sharded parameters, too, the frozen ones among them: fetched layer by layer. Needs stage 3."""


class Keep(StrEnum):
    """Which checkpoint of a run is exported."""

    BEST = "best"
    """The one of the lowest validation loss on held-out rows; the last one where no rows are held out."""
    LAST = "last"


@dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """A fixed set of samples, each with its hole, timestep and noise, whose loss is taken again and again."""

    share: float = 0.0
    """Share of the rows that is held out for it, in [0, 1); 0: it is drawn from the rows that are trained on."""
    data: str | None = None
    """Rows of its own instead, in the training data's form: a path or an object-store URL."""
    samples: int = 64
    """Samples in the set; 0: no validation."""
    every: int | None = may_change(None)
    """Samples between validations; unset: at each checkpoint."""
    pictures: int = may_change(4)
    """Samples painted at each validation into the run's `validation/`; 0: none."""
    export: Keep = may_change(Keep.BEST)
    """Which checkpoint is exported."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise InpaintError(f"validation.share is {self.share}: give a share of the rows in [0, 1)")
        if self.share and self.data is not None:
            raise InpaintError("validation.share and validation.data: give one of them")
        if self.samples < 0 or self.pictures < 0 or (self.every is not None and self.every < 1):
            raise InpaintError(
                f"validation: samples {self.samples} and pictures {self.pictures} must not be negative, every "
                f"{self.every} at least 1"
            )

    @property
    def is_held_out(self) -> bool:
        """Whether its rows are trained on nowhere."""
        return self.share > 0 or self.data is not None


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long, how fast, on how many workers."""

    epochs: float | None = may_change(None)
    """Passes over the rows; where given, it replaces `samples`. The last step's batch runs on into the next."""
    samples: int = may_change(10_000)
    """Samples to train on."""
    global_batch: int = 16
    """Samples per optimizer step, over all workers: the same for any number of them."""
    max_micro_batch: int = may_change(4)
    """Most samples per forward on one worker. What remains of the global batch is accumulated."""
    workers: int | tuple[int, int] = may_change((1, 8))
    """Ray Train workers: as many of (fewest, most) as the cluster holds; one number is exactly that many."""
    gpu: bool | None = may_change(None)
    """Train on GPUs, one per worker; unset: where the cluster has them."""
    seed: int = 0
    """Keys the plan and every sample's randomness."""
    precision: Precision = Precision.FP32
    """Compute type of the forward and backward; trained parameters and Adam stay in fp32. fp16 needs GPUs."""
    zero_stage: int = may_change(1)
    """DeepSpeed ZeRO: 0 nothing sharded, 1 optimizer states, 2 and gradients, 3 and parameters."""
    offload: Offload = may_change(Offload.NONE)
    """What is kept in the CPUs' memory while it is not used."""
    gradient_checkpointing: bool = may_change(False)
    """Recompute activations in the backward: less memory, about a third more time."""
    optimizer: Optimizer = Optimizer.ADAMW
    """All but adamw and sgd need `zero_stage` 0."""
    schedule: RateSchedule = RateSchedule.COSINE
    """Of every group's learning rate after the warm-up, down to zero (constant: no decay)."""
    warmup: float = 0.05
    """Share of the samples over which learning rates rise from zero, in [0, 1)."""
    weight_decay: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 turns it off."""
    ema_halflife: float | None = None
    """Half-life, in samples, of the moving average of the trained parameters; unset: none is kept."""
    checkpoint_every: int = may_change(2000)
    """Samples between checkpoints; one is always written at the end."""
    keep_checkpoints: int = may_change(2)
    """How many good checkpoints stay beside the best, >= 2, so that a corrupt one has one before it."""
    max_failures: int = may_change(3)
    """How often a crashed worker group is restarted from its last checkpoint."""

    def __post_init__(self) -> None:
        fewest, _ = self.worker_range
        if fewest < 1 or (not isinstance(self.workers, int) and self.workers[0] > self.workers[1]):
            raise InpaintError(f"workers {self.workers}: give a number from 1 up, or (fewest, most)")
        if min(self.max_micro_batch, self.global_batch) < 1:
            raise InpaintError(
                f"global_batch {self.global_batch}, max_micro_batch {self.max_micro_batch}: give at least 1"
            )
        if fewest > self.global_batch:
            raise InpaintError(f"workers {self.workers}: a global batch of {self.global_batch} has work for no more")
        if self.zero_stage not in (0, 1, 2, 3):
            raise InpaintError(f"zero_stage is {self.zero_stage}: give 0, 1, 2 or 3")
        if self.offload is not Offload.NONE and self.zero_stage == 0:
            raise InpaintError("offload needs zero_stage 1, 2 or 3")
        if self.offload is Offload.PARAMETERS and self.zero_stage != 3:
            raise InpaintError(f"offload parameters needs zero_stage 3, not {self.zero_stage}; or offload optimizer")
        if self.precision is Precision.FP16 and self.zero_stage == 0:
            raise InpaintError("precision fp16 needs zero_stage 1, 2 or 3 (ZeRO scales the loss); or use bf16")
        if self.optimizer not in MOMENTS and self.zero_stage:
            raise InpaintError(
                f"optimizer {self.optimizer} needs whole parameters, which zero_stage {self.zero_stage} does not keep: "
                "give zero_stage 0 (without offload, and bf16 instead of fp16), or adamw"
            )
        if not 0 <= self.warmup < 1:
            raise InpaintError(f"warmup is {self.warmup}: give a share of the samples in [0, 1)")
        if self.keep_checkpoints < 2:
            raise InpaintError(f"keep_checkpoints is {self.keep_checkpoints}: at least 2, or a corrupt one is the end")
        if self.checkpoint_every < 1:
            raise InpaintError(f"checkpoint_every is {self.checkpoint_every}: give samples, at least 1")
        if self.ema_halflife is not None and self.ema_halflife <= 0:
            raise InpaintError(f"ema_halflife is {self.ema_halflife}: give samples, more than 0, or leave it out")
        if self.samples < 1 or (self.epochs is not None and self.epochs <= 0):
            raise InpaintError(f"nothing to train on: samples {self.samples}, epochs {self.epochs}")

    @property
    def worker_range(self) -> tuple[int, int]:
        """(fewest, most) workers; never more than a global batch has samples."""
        fewest, most = (self.workers, self.workers) if isinstance(self.workers, int) else self.workers
        return fewest, max(fewest, min(most, self.global_batch))

    def layout(self, workers: int, samples: int | None = None) -> StepLayout:
        """How a step's samples, or so many others, are dealt to workers."""
        return StepLayout(
            global_batch=samples or self.global_batch, max_micro_batch=self.max_micro_batch, workers=workers
        )

    def total_samples(self, samples_per_epoch: int) -> int:
        """Samples of the whole run, rounded up to whole global batches."""
        wanted = self.samples if self.epochs is None else math.ceil(self.epochs * samples_per_epoch)
        return math.ceil(wanted / self.global_batch) * self.global_batch

    def lr_scale(self, samples: int, total: int) -> float:
        """Factor on every learning rate for the step that starts after `samples` of `total`, in [0, 1]."""
        warm = self.warmup * total
        if samples < warm:
            return (samples + self.global_batch) / (warm + self.global_batch)
        done = (samples - warm) / max(total - warm, 1)
        match self.schedule:
            case RateSchedule.CONSTANT:
                return 1.0
            case RateSchedule.LINEAR:
                return 1.0 - done
            case RateSchedule.COSINE:
                return 0.5 * (1.0 + math.cos(math.pi * done))
