"""What is used of DeepSpeed beside its public interface, in one place; tried on DeepSpeed 0.19.

torch makes an optimizer's state lazily and DeepSpeed links it late, so that nothing could be loaded before the first
step; its "full" setters fail under ZeRO 3 where a parameter's size is no multiple of the world size; it compiles a
collective on CPUs, which needs a C++ compiler, and its first broadcast refuses weights in channels_last.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from deepspeed.utils import (
    logger,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

TRAINED = "trained"
"""Kind of state that is a parameter itself; others are the optimizer's moments."""
_SCALING = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""All that changes in a DynamicLossScaler."""


class Sharded:
    """A DeepSpeed engine around a module, on the process group that is already initialised, and the state of what it
    trains: each parameter and its optimizer's `moments`, whole, whatever the stage leaves on this rank."""

    def __init__(
        self, module: Any, optimizer: torch.optim.Optimizer, config: dict[str, Any], moments: Sequence[str]
    ) -> None:
        logger.setLevel("WARNING")
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        with _contiguous(module):
            self.engine, *_ = deepspeed.initialize(
                model=module, optimizer=optimizer, config=config, dist_init_required=False
            )
        self.stage = config["zero_optimization"]["stage"]
        self.moments = moments
        self.scaler: DynamicLossScaler | None = None
        """In fp16."""
        if "fp16" in config:
            self.scaler = self.engine.optimizer.loss_scaler
            # It would be a bare Exception, which is also what a worker that died raises.
            self.scaler.raise_error_at_min_scale = False

    def has_stepped(self) -> bool:
        """Whether the optimizer made the last step; in fp16 it skips those whose gradients overflow. Raises
        FloatingPointError where one did and the loss cannot be scaled any less."""
        stepped: bool = self.engine.was_step_applied()
        if not stepped and self.scaler is not None and self.scaler.cur_scale <= self.scaler.min_scale:
            raise FloatingPointError("gradients are not finite in fp16: lower the learning rate, or use bf16 or fp32")
        return stepped

    def loss_scale(self) -> dict[str, float]:
        """Where dynamic loss scaling stands."""
        return {name: getattr(self.scaler, name) for name in _SCALING}

    def set_loss_scale(self, numbers: Mapping[str, float]) -> None:
        """Set what `loss_scale` gave."""
        for name in _SCALING:
            setattr(self.scaler, name, numbers[name])

    def start_optimizer(self, parameters: Sequence[nn.Parameter], steps: int | None) -> None:
        """Make the optimizer's state exist, as after `steps` steps (None: an optimizer that counts none)."""
        optimizer = self.engine.optimizer
        inner = optimizer if self.stage == 0 else optimizer.optimizer
        stepped: Sequence[Tensor] = {
            0: lambda: parameters,
            3: lambda: optimizer.fp32_partitioned_groups_flat,
        }.get(self.stage, lambda: optimizer.single_partition_of_fp32_groups)()
        for parameter in stepped:
            state = inner.state[parameter]
            for moment in self.moments:
                state.setdefault(moment, torch.zeros_like(parameter))
            if steps is not None:
                state["step"] = torch.tensor(float(steps), device=parameter.device)
        if self.stage in (1, 2):
            optimizer._lazy_init_hp_params_optimizer_state()

    def masters(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, Tensor]]:
        """The parameters that the optimizer steps, fp32 and whole, by name, one after another: in fp16 not the
        module's, which are rounded. Collective."""
        if self.scaler is not None:
            for name, parameter in parameters.items():
                shape = getattr(parameter, "ds_shape", parameter.shape)
                yield name, safe_get_full_fp32_param(parameter).reshape(shape)
            return
        with self.whole(list(parameters.values())):
            for name, parameter in parameters.items():
                yield name, parameter.detach().float()

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """A parameter and its moments by kind, as fp32 copies on the CPU. Collective."""
        if self.stage == 0:
            kept = self.engine.optimizer.state[parameter]
            full = {TRAINED: parameter.detach(), **{m: kept[m] for m in self.moments}}
        else:
            full = {TRAINED: safe_get_full_fp32_param(parameter)}
            full |= {m: safe_get_full_optimizer_state(parameter, m) for m in self.moments}
        shape = getattr(parameter, "ds_shape", parameter.shape)
        return {kind: value.detach().float().cpu().clone().reshape(shape) for kind, value in full.items()}

    def set_state(self, parameter: nn.Parameter, full: Mapping[str, Tensor]) -> None:
        """Set the optimizer's side of one parameter: its fp32 master copy and its moments. Collective."""
        if self.stage == 0:
            for moment in self.moments:
                self.engine.optimizer.state[parameter][moment].copy_(full[moment])
        elif self.stage < 3:
            safe_set_full_fp32_param(parameter, full[TRAINED])
            for moment in self.moments:
                safe_set_full_optimizer_state(parameter, full[moment], moment)
        else:
            safe_set_local_fp32_param(parameter, _shard(parameter, full[TRAINED]))
            for moment in self.moments:
                safe_set_local_optimizer_state(parameter, _shard(parameter, full[moment]), moment)

    @contextmanager
    def whole(self, parameters: list[nn.Parameter], *, modify: bool = False) -> Iterator[None]:
        """Within, the parameters are not sharded (stage 3 gathers them). Collective."""
        if self.stage < 3:
            yield
            return
        with GatheredParameters(parameters, modifier_rank=0 if modify else None):
            yield


@contextmanager
def _contiguous(module: nn.Module) -> Iterator[None]:
    """Within, no weight is in channels_last. Frozen weights are so again afterwards; trained ones are not, for ZeRO
    keeps them in flat buffers."""
    # Not `is_contiguous`, which is true of a 1 x 1 convolution in channels_last.
    changed = [p for p in module.parameters() if p.ndim == 4 and p.stride(-1) != 1]
    for parameter in changed:
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    yield
    for parameter in changed:
        if not parameter.requires_grad and parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _shard(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This rank's part of `value` under ZeRO 3, padded with zeros."""
    size = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
    padded = nn.functional.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
    return padded[size * dist.get_rank() :][:size]
