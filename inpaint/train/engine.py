"""DeepSpeed ZeRO behind four verbs: one optimizer step, and the training state gathered, loaded, and averaged.

Trained parameters are fp32 and compute is autocast by the objective, so that stages 0 to 3 hold the same numbers;
only fp16 uses DeepSpeed's own half-precision path, for its loss scaling. The gathered state does not depend on the
stage nor on the world size (verified: `tests/unit/train/test_engine.py`).
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from inpaint.train.objective import Batch, Objective, ParameterGroup
from inpaint.train.settings import Offload, Precision, TrainSettings

State = dict[str, dict[str, Tensor]]
"""Kind of state (`trained`, and the optimizer's `exp_avg`, ...) -> name of the parameter -> full fp32 CPU tensor."""

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


class ZeroEngine:
    """Wraps an objective for data-parallel training on the process group that is already initialised."""

    def __init__(self, objective: Objective, settings: TrainSettings, device: torch.device) -> None:
        self.settings = settings
        self.device = device
        self.groups: list[ParameterGroup] = objective.groups()
        self.parameters = {name: p for group in self.groups for name, p in group.parameters.items()}
        self.moments = MOMENTS[settings.optimizer]
        initial = {name: p.detach().float().cpu().clone() for name, p in self.parameters.items()}
        self._engine = _initialize(objective, self.groups, settings)
        # Once: it walks through all modules. Whoever switches some to evaluation, switches them back.
        self._engine.train()
        zeros = {name: torch.zeros_like(value) for name, value in initial.items()}
        self.load({"trained": initial, **dict.fromkeys(self.moments, zeros)}, steps=0)

    def train_step(self, batches: list[Batch], lr_scale: float) -> float:
        """One optimizer step over this worker's micro-batches; returns their mean loss."""
        for group, settings in zip(self._optimizer_groups(), self.groups, strict=True):
            group["lr"] = settings.learning_rate * lr_scale
        total = 0.0
        for batch in batches:
            losses_B = self._engine(batch)
            loss = (losses_B * torch.tensor(batch["weight"], device=losses_B.device)).mean()
            self._engine.backward(loss)
            self._engine.step()
            total += float(loss.detach())
        return total / len(batches)

    def gather(self) -> State:
        """The full training state on every rank. Collective: all ranks must call it."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        state: State = {"trained": {}, **{m: {} for m in self.moments}}
        for name, parameter in self.parameters.items():
            if self.settings.zero_stage == 0:
                kept = self._engine.optimizer.state[parameter]
                full = {"trained": parameter.detach(), **{m: kept[m] for m in self.moments}}
            else:
                full = {"trained": safe_get_full_fp32_param(parameter)}
                full |= {m: safe_get_full_optimizer_state(parameter, m) for m in self.moments}
            for kind, tensor in full.items():
                state[kind][name] = tensor.detach().float().cpu().clone().reshape(self._shape(parameter))
        return state

    @torch.no_grad()
    def load(self, state: Mapping[str, Mapping[str, Tensor]], *, steps: int) -> None:
        """Continue from a gathered state after `steps` optimizer steps. Collective."""
        self._start_optimizer(steps)
        for name, parameter in self.parameters.items():
            self._set(parameter, {kind: state[kind][name].to(self.device) for kind in ("trained", *self.moments)})
            # The first forward reads the module's own copy, which ZeRO refreshes only after a step.
            with self.whole([parameter], modify=True):
                parameter.copy_(state["trained"][name].to(self.device))

    def _set(self, parameter: nn.Parameter, full: dict[str, Tensor]) -> None:
        """Set the optimizer's side of one parameter: its fp32 master copy (`trained`) and its moments."""
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        trained = full.pop("trained")
        if self.settings.zero_stage == 0:
            for moment, value in full.items():
                self._engine.optimizer.state[parameter][moment].copy_(value)
        elif self.settings.zero_stage < 3:
            safe_set_full_fp32_param(parameter, trained)
            for moment, value in full.items():
                safe_set_full_optimizer_state(parameter, value, moment)
        else:
            # The "full" setters of stage 3 fail where the size is no multiple of the world size.
            safe_set_local_fp32_param(parameter, _shard(parameter, trained))
            for moment, value in full.items():
                safe_set_local_optimizer_state(parameter, _shard(parameter, value), moment)

    @contextmanager
    def whole(self, parameters: list[nn.Parameter], *, modify: bool = False) -> Iterator[None]:
        """Within, the parameters are not sharded (stage 3 gathers them). Collective."""
        if self.settings.zero_stage < 3:
            yield
            return
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        with GatheredParameters(parameters, modifier_rank=0 if modify else None):
            yield

    def _shape(self, parameter: nn.Parameter) -> torch.Size:
        return getattr(parameter, "ds_shape", parameter.shape)

    def _optimizer_groups(self) -> list[dict[str, Any]]:
        return self._engine.optimizer.param_groups

    def _start_optimizer(self, steps: int) -> None:
        """Make the optimizer's state exist, as after `steps` steps: torch makes it lazily, DeepSpeed links it late."""
        optimizer = self._engine.optimizer
        inner = optimizer if self.settings.zero_stage == 0 else optimizer.optimizer
        for parameter in self._inner_parameters():
            state = inner.state[parameter]
            for moment in self.moments:
                state.setdefault(moment, torch.zeros_like(parameter))
            if self.settings.optimizer == "adamw":
                state["step"] = torch.tensor(float(steps), device=parameter.device)
        if self.settings.zero_stage in (1, 2):
            optimizer._lazy_init_hp_params_optimizer_state()

    def _inner_parameters(self) -> list[Tensor]:
        """What the wrapped torch optimizer steps: the parameters, or ZeRO's flat fp32 partitions of them."""
        optimizer = self._engine.optimizer
        if self.settings.zero_stage == 0:
            return list(self.parameters.values())
        if self.settings.zero_stage == 3:
            return list(optimizer.fp32_partitioned_groups_flat)
        return list(optimizer.single_partition_of_fp32_groups)


def _shard(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This rank's part of `value` under ZeRO 3, padded with zeros."""
    size = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
    padded = nn.functional.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
    return padded[size * dist.get_rank() :][:size]


def _initialize(objective: Objective, groups: list[ParameterGroup], settings: TrainSettings) -> Any:
    # DeepSpeed logs a page at import and compiles a shared-memory collective on CPU, which needs a C++ compiler.
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel("WARNING")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    parameters = [{"params": list(g.parameters.values()), "lr": g.learning_rate} for g in groups]
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            parameters,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            fused=True,  # one kernel for all parameters, on CPUs too
        )
    else:
        optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9, weight_decay=settings.weight_decay)
    with _contiguous(objective):
        engine, *_ = deepspeed.initialize(
            model=objective,
            optimizer=optimizer,
            config=deepspeed_config(settings, sum(p.numel() for g in groups for p in g.parameters.values())),
            dist_init_required=False,
        )
    return engine


@contextmanager
def _contiguous(objective: Any) -> Iterator[None]:
    """Within, no weight is in channels_last, which DeepSpeed's first broadcast refuses. Frozen weights are so again
    afterwards; trained ones are not, for ZeRO keeps them in flat buffers."""
    # Not `is_contiguous`, which is true of a 1 x 1 convolution in channels_last.
    changed = [p for p in objective.parameters() if p.ndim == 4 and p.stride(-1) != 1]
    for parameter in changed:
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    yield
    for parameter in changed:
        if not parameter.requires_grad and parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def deepspeed_config(settings: TrainSettings, trained: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a run with `trained` parameters in training."""
    # Its default buckets are half a billion elements, allocated in full: for a LoRA they are sized to what is trained.
    bucket = min(-(-trained // 4096) * 4096, 500_000_000)
    config: dict[str, Any] = {
        "train_batch_size": settings.accumulation * settings.micro_batch * dist.get_world_size(),
        "train_micro_batch_size_per_gpu": settings.micro_batch,
        "gradient_accumulation_steps": settings.accumulation,
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
    if settings.offload is Offload.CPU:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    if settings.precision is Precision.FP16:
        config["fp16"] = {"enabled": True}
    return config
