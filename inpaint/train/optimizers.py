"""The optimizers: what each lacks on this machine, how it is made, and its state as tensors.

ZeRO's stages 1 to 3 hand an optimizer flat parts of the parameters, one group after another: AdamW and SGD do not mind.
Adafactor's rows and columns, 8-bit AdamW's blocks and Prodigy's one estimate for all groups need them whole, so these
are for stage 0, which every worker computes alike; what they keep beside moments is saved and loaded as it is.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from inpaint.errors import InpaintError
from inpaint.train.checkpoint import State
from inpaint.train.objective import ParameterGroup
from inpaint.train.settings import Optimizer, TrainSettings

GROUPS = "groups"
"""Kind of state: the numbers of an optimizer's groups, by place and name (Prodigy's `0.d`)."""
_PACKAGES = {Optimizer.ADAMW_8BIT: "bitsandbytes", Optimizer.PRODIGY: "prodigyopt"}


def check(optimizer: Optimizer, rates: Mapping[str, float]) -> None:
    """Raises InpaintError where the optimizer's package is not installed, or a learning rate is none that it can use.

    Args:
        rates: by the names of their settings.
    """
    package = _PACKAGES.get(optimizer)
    if package is not None and find_spec(package) is None:
        raise InpaintError(
            f"optimizer {optimizer} needs {package}, which is not installed: pip install 'inpaint[{optimizer}]' "
            "on every machine, or give adamw"
        )
    if optimizer is Optimizer.PRODIGY and any(rate != 1.0 for rate in rates.values()):
        raise InpaintError(
            f"optimizer prodigy finds the learning rate by itself, one for all: give {', '.join(rates)} 1, not "
            f"{', '.join(f'{rate:g}' for rate in rates.values())}"
        )


def build(groups: Sequence[ParameterGroup], settings: TrainSettings) -> torch.optim.Optimizer:
    """The settings' optimizer; its learning rates are set before each step."""
    parameters: Any = [{"params": list(g.parameters.values()), "lr": g.learning_rate} for g in groups]
    decay, betas = settings.weight_decay, (settings.beta1, settings.beta2)
    match settings.optimizer:
        case Optimizer.SGD:
            return torch.optim.SGD(parameters, lr=0.0, momentum=0.9, weight_decay=decay)
        case Optimizer.ADAFACTOR:
            # Not torch's, which scales rates by the weights' own size: a LoRA's start at zero.
            from transformers.optimization import Adafactor

            return Adafactor(parameters, lr=0.0, weight_decay=decay, scale_parameter=False, relative_step=False)
        case Optimizer.ADAMW_8BIT:
            import bitsandbytes

            eight: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
                parameters, betas=betas, eps=settings.epsilon, weight_decay=decay
            )
            return eight
        case Optimizer.PRODIGY:
            import prodigyopt

            # The last two as its authors advise for diffusion models.
            found: torch.optim.Optimizer = prodigyopt.Prodigy(
                parameters,
                betas=betas,
                eps=settings.epsilon,
                weight_decay=decay,
                use_bias_correction=True,
                safeguard_warmup=True,
            )
            return found
        case Optimizer.ADAMW:
            # Fused: one kernel for all parameters, on CPUs too.
            return torch.optim.AdamW(parameters, betas=betas, eps=settings.epsilon, weight_decay=decay, fused=True)


def state_of(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> State:
    """All that an optimizer keeps of these parameters, by kind and name, and the numbers of its groups; on the CPU."""
    state: State = {GROUPS: {}}
    for name, parameter in parameters.items():
        for kind, value in optimizer.state[parameter].items():
            state.setdefault(kind, {})[name] = pack(value)
    for place, group in enumerate(optimizer.param_groups):
        numbers = {key: value for key, value in group.items() if type(value) in (int, float)}
        state[GROUPS] |= {f"{place}.{key}": pack(value) for key, value in numbers.items()}
    return state


def load_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Set what `state_of` gave."""
    for name, parameter in parameters.items():
        kept = {kind: unpack(named[name], parameter.device) for kind, named in state.items() if name in named}
        optimizer.state[parameter] = kept
    for path, number in state[GROUPS].items():
        place, _, key = path.partition(".")
        optimizer.param_groups[int(place)][key] = number.item()


def pack(value: Tensor | float) -> Tensor:
    """A tensor or a number, as a tensor of its own on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def unpack(packed: Tensor, device: torch.device) -> Tensor | float:
    """What `pack` was given; numbers are what these dtypes are used for."""
    is_number = packed.ndim == 0 and packed.dtype in (torch.int64, torch.float64)
    return packed.item() if is_number else packed.to(device, copy=True)
