"""DeepSpeed ZeRO behind a few verbs: one optimizer step, a loss without one, the training state gathered and loaded;
and the moving average of what is trained, where the settings ask for one.

Trained parameters are fp32 and compute is autocast by the objective, so that stages 0 to 3 hold the same numbers;
only fp16 uses DeepSpeed's own half-precision path, for its loss scaling. The gathered state does not depend on the
stage nor on the world size (verified: `tests/unit/train/test_engine.py`).
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from inpaint.data.plan import StepLayout
from inpaint.device import on_device
from inpaint.train import optimizers
from inpaint.train.checkpoint import State
from inpaint.train.objective import MicroBatch, Objective, ParameterGroup
from inpaint.train.settings import MOMENTS, Offload, Optimizer, Precision, TrainSettings

LOSS_SCALE = "loss_scale"
"""Kind of state: where DeepSpeed's dynamic loss scaling stands, in fp16."""


class Engine(Protocol):
    """What the loop trains with."""

    settings: TrainSettings
    layout: StepLayout
    device: torch.device
    steps: int
    """Optimizer steps that were made."""

    @property
    def objective(self) -> Objective:
        """What is trained."""
        ...

    def train_step(self, batches: list[MicroBatch], lr_scale: float) -> Tensor:
        """One optimizer step over this worker's micro-batches; returns its part of the global batch's loss."""
        ...

    def validation_loss(self, batch: MicroBatch) -> Tensor:
        """The sum of the weighed losses of a validation batch."""
        ...

    def evaluating(self) -> AbstractContextManager[None]:
        """Within, the objective is in evaluation mode, and computes with what would be exported."""
        ...

    def gather(self) -> State:
        """The full training state on every rank. Collective."""
        ...

    def load(self, state: Mapping[str, Mapping[str, Tensor]], *, steps: int) -> None:
        """Continue from a gathered state after `steps` optimizer steps. Collective."""
        ...


class ZeroEngine:
    """Wraps an objective for data-parallel training on the process group that is already initialised."""

    def __init__(self, objective: Objective, settings: TrainSettings, layout: StepLayout, device: torch.device) -> None:
        # DeepSpeed logs a page when it is imported, and reads these then; only workers import it.
        os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
        os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
        from inpaint.train.deepspeed_internals import Sharded

        self.objective, self.settings, self.layout, self.device = objective, settings, layout, device
        self.groups: list[ParameterGroup] = objective.groups()
        self.parameters = {name: p for group in self.groups for name, p in group.parameters.items()}
        moments = MOMENTS.get(settings.optimizer, ())
        initial = {name: p.detach().float().cpu().clone() for name, p in self.parameters.items()}
        trained = sum(p.numel() for p in self.parameters.values())
        config = deepspeed_config(settings, layout, trained)
        self._sharded = Sharded(objective, optimizers.build(self.groups, settings), config, moments)
        self._engine = self._sharded.engine
        # Once: it walks through all modules. Whoever switches some to evaluation, switches them back.
        self._engine.train()
        zeros = {name: torch.zeros_like(value) for name, value in initial.items()}
        self.load({"trained": initial, "ema": initial, **dict.fromkeys(moments, zeros)}, steps=0)

    def train_step(self, batches: list[MicroBatch], lr_scale: float) -> Tensor:
        """One optimizer step over this worker's micro-batches; returns its part of the global batch's loss.

        The gradient is that of the sum of all workers' parts, however many slots of the batches are padding. In fp16 a
        step whose gradients overflow is skipped, and the next one's loss is scaled less.

        Raises:
            FloatingPointError: gradients are not finite, though the loss can be scaled no less.
        """
        for group, settings in zip(self._engine.optimizer.param_groups, self.groups, strict=True):
            group["lr"] = settings.learning_rate * lr_scale
        # DeepSpeed takes the mean over workers and micro-batches.
        scale = self.layout.workers * self.layout.accumulation
        total = torch.zeros((), device=self.device)
        for batch in batches:
            loss = self._weighed(self._engine(batch), batch) / self.layout.global_batch
            self._engine.backward(loss * scale)
            self._engine.step()
            total += loss.detach()
        if self._sharded.has_stepped():
            self.steps += 1
            if self.settings.ema_halflife is not None:
                self._update_average(self.settings.ema_halflife)
        return total

    @torch.no_grad()
    def _update_average(self, halflife: float) -> None:
        """average <- d * average + (1 - d) * parameters. Collective."""
        decay = average_decay(halflife, batch=self.layout.global_batch, steps=self.steps)
        for name, master in self._sharded.masters(self.parameters):
            self._average[name].lerp_(master.to(self.device), 1 - decay)

    @torch.no_grad()
    def validation_loss(self, batch: MicroBatch) -> Tensor:
        """The sum of the weighed losses of a validation batch."""
        return self._weighed(self._engine(batch, validating=True), batch)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, the objective is in evaluation mode, and computes with what would be exported: the moving average,
        where one is kept. Collective."""
        trained: dict[str, Tensor] = {}
        if self._average:
            with self._sharded.whole(list(self.parameters.values())):
                trained = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._show(self._average)
        self._engine.eval()
        try:
            yield
        finally:
            self._engine.train()
            self._show(trained)

    def _weighed(self, losses_B: Tensor, batch: MicroBatch) -> Tensor:
        return (losses_B * on_device(batch["weight"], losses_B.device)).sum()

    def gather(self) -> State:
        """The full training state on every rank. Collective: all ranks must call it."""
        state: State = {}
        for name, parameter in self.parameters.items():
            for kind, tensor in self._sharded.state_of(parameter).items():
                state.setdefault(kind, {})[name] = tensor
        if not self._sharded.moments:
            state |= optimizers.state_of(self._engine.optimizer, self.parameters)
        if self._sharded.scaler is not None:
            state[LOSS_SCALE] = {name: optimizers.pack(number) for name, number in self._sharded.loss_scale().items()}
        if self._average:
            state["ema"] = {name: tensor.to("cpu", copy=True) for name, tensor in self._average.items()}
        return state

    @torch.no_grad()
    def load(self, state: Mapping[str, Mapping[str, Tensor]], *, steps: int) -> None:
        """Continue from a gathered state after `steps` optimizer steps. Collective."""
        counted = steps if self.settings.optimizer is Optimizer.ADAMW else None
        self._sharded.start_optimizer(list(self.parameters.values()), counted)
        for name, parameter in self.parameters.items():
            full = {kind: state[kind][name].to(self.device) for kind in ("trained", *self._sharded.moments)}
            self._sharded.set_state(parameter, full)
        if optimizers.GROUPS in state:
            kept = {kind: named for kind, named in state.items() if kind not in ("trained", "ema")}
            optimizers.load_state(self._engine.optimizer, self.parameters, kept)
        if LOSS_SCALE in state:
            self._sharded.set_loss_scale({name: number.item() for name, number in state[LOSS_SCALE].items()})
        self._show(state["trained"])
        self.steps = steps
        """Optimizer steps that were made; those that fp16 skipped are not."""
        average = {} if self.settings.ema_halflife is None else state["ema"]
        self._average = {name: tensor.to(self.device, copy=True) for name, tensor in average.items()}

    @torch.no_grad()
    def _show(self, values: Mapping[str, Tensor]) -> None:
        """Let the module compute with these values from its next forward on, its optimizer knowing nothing of it: the
        module has copies of its own, which ZeRO refreshes only after a step. Collective."""
        for name, value in values.items():
            with self._sharded.whole([self.parameters[name]], modify=True):
                self.parameters[name].copy_(value.to(self.device))


def average_decay(halflife: float, *, batch: int, steps: int) -> float:
    """d = 0.5 ** (batch / halflife) (Karras et al. 2023, eq. 121) after so many steps of `batch` samples.

    The half-life is in samples, so that it does not depend on the batch, and capped at a tenth of the samples seen so
    far, so that the start is forgotten.
    """
    return 0.5 ** (batch / max(min(halflife, steps * batch / 10), 1e-8))


def deepspeed_config(settings: TrainSettings, layout: StepLayout, trained: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a run with `trained` parameters in training."""
    # Its default buckets are half a billion elements, allocated in full: for a LoRA they are sized to what is trained.
    bucket = min(-(-trained // 4096) * 4096, 500_000_000)
    config: dict[str, Any] = {
        "train_batch_size": layout.accumulation * layout.micro_batch * dist.get_world_size(),
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": layout.accumulation,
        "gradient_clipping": settings.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31 - 1,
        "zero_optimization": {
            "stage": settings.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
            "overlap_comm": torch.cuda.is_available(),
            # It saves GPUs from fragmented memory; on CPUs its copies, one per parameter, are 2 % of a small step.
            "contiguous_gradients": torch.cuda.is_available(),
        },
    }
    if settings.offload is not Offload.NONE:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    if settings.offload is Offload.PARAMETERS:
        config["zero_optimization"]["offload_param"] = {"device": "cpu"}
    if settings.precision is Precision.FP16:
        config["fp16"] = {"enabled": True}
    return config
