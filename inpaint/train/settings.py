"""The settings that every workload's training shares. Progress and schedules are counted in samples, never in steps."""

import math
from dataclasses import dataclass
from enum import StrEnum

from inpaint.errors import InpaintError


class Precision(StrEnum):
    """Compute type of a forward and backward."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class Schedule(StrEnum):
    """How learning rates fall after the warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class Offload(StrEnum):
    """Where optimizer states are kept."""

    NONE = "none"
    CPU = "cpu"


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long, how fast, on how many workers."""

    epochs: float | None = None
    """Passes over the manifest; where given, it replaces `samples`. The last step's batch runs on into the next."""
    samples: int = 10_000
    """Samples to train on."""
    global_batch: int = 16
    """Samples per optimizer step, over all workers: constant when the number of workers changes."""
    micro_batch: int = 4
    """Samples per forward on one worker. What remains of the global batch is accumulated."""
    workers: int = 1
    """Ray Train workers. `global_batch` must be a multiple of `workers * micro_batch`."""
    gpu: bool | None = None
    """Train on GPUs, one per worker; unset: where the cluster has them."""
    seed: int = 0
    """Keys the plan and every sample's randomness."""
    precision: Precision = Precision.FP32
    """Compute type of the forward and backward; trained parameters and Adam stay in fp32."""
    zero_stage: int = 1
    """DeepSpeed ZeRO: 0 nothing sharded, 1 optimizer states, 2 and gradients, 3 and parameters."""
    offload: Offload = Offload.NONE
    """Where ZeRO keeps optimizer states."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward: less memory, about a third more time."""
    optimizer: str = "adamw"
    """adamw, or sgd (momentum 0.9)."""
    schedule: Schedule = Schedule.COSINE
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
    checkpoint_every: int = 2000
    """Samples between checkpoints; one is always written at the end."""
    keep_checkpoints: int = 2
    """How many good checkpoints stay, >= 2, so that a corrupt one has one before it."""
    max_failures: int = 3
    """How often a crashed worker group is restarted from its last checkpoint."""

    def __post_init__(self) -> None:
        share = self.workers * self.micro_batch
        if min(self.workers, self.micro_batch, self.global_batch) < 1:
            raise InpaintError("workers, micro_batch and global_batch must be at least 1")
        if self.global_batch % share:
            raise InpaintError(
                f"global_batch {self.global_batch} is not a multiple of workers x micro_batch = "
                f"{self.workers} x {self.micro_batch}; {math.ceil(self.global_batch / share) * share} would be"
            )
        if self.zero_stage not in (0, 1, 2, 3):
            raise InpaintError(f"zero_stage is {self.zero_stage}: give 0, 1, 2 or 3")
        if self.offload is not Offload.NONE and self.zero_stage == 0:
            raise InpaintError("offload needs zero_stage 1, 2 or 3")
        if self.precision is Precision.FP16 and self.zero_stage == 0:
            raise InpaintError("precision fp16 needs zero_stage 1, 2 or 3 (ZeRO scales the loss); or use bf16")
        if self.optimizer not in ("adamw", "sgd"):
            raise InpaintError(f"optimizer {self.optimizer!r}: give adamw or sgd")
        if not 0 <= self.warmup < 1:
            raise InpaintError(f"warmup is {self.warmup}: give a share of the samples in [0, 1)")
        if self.keep_checkpoints < 2:
            raise InpaintError(f"keep_checkpoints is {self.keep_checkpoints}: at least 2, or a corrupt one is the end")
        if self.samples < 1 or (self.epochs is not None and self.epochs <= 0):
            raise InpaintError(f"nothing to train on: samples {self.samples}, epochs {self.epochs}")

    @property
    def accumulation(self) -> int:
        """Micro-batches per worker and optimizer step."""
        return self.global_batch // (self.workers * self.micro_batch)

    def total_samples(self, rows: int) -> int:
        """Samples of the whole run over a manifest of `rows`, rounded up to whole global batches."""
        wanted = self.samples if self.epochs is None else math.ceil(self.epochs * rows)
        return math.ceil(wanted / self.global_batch) * self.global_batch

    def lr_scale(self, samples: int, total: int) -> float:
        """Factor on every learning rate for the step that starts after `samples` of `total`, in [0, 1]."""
        warm = self.warmup * total
        if samples < warm:
            return (samples + self.global_batch) / (warm + self.global_batch)
        done = (samples - warm) / max(total - warm, 1)
        match self.schedule:
            case Schedule.CONSTANT:
                return 1.0
            case Schedule.LINEAR:
                return 1.0 - done
            case Schedule.COSINE:
                return 0.5 * (1.0 + math.cos(math.pi * done))
