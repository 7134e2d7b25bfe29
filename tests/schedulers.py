"""What diffusers calls our samplers and schedules."""

from collections.abc import Mapping
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)

from inpaint.diffusion.noise_levels import RAMPS, StepSchedule
from inpaint.diffusion.samplers import Sampler

_CLASSES: dict[Sampler, tuple[Any, dict[str, Any]]] = {
    Sampler.DDIM: (DDIMScheduler, {}),
    Sampler.EULER: (EulerDiscreteScheduler, {}),
    Sampler.EULER_ANCESTRAL: (EulerAncestralDiscreteScheduler, {}),
    Sampler.HEUN: (HeunDiscreteScheduler, {}),
    Sampler.DPMPP_2M: (DPMSolverMultistepScheduler, {}),
    Sampler.DPMPP_2M_SDE: (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    Sampler.UNIPC: (UniPCMultistepScheduler, {}),
    Sampler.LCM: (LCMScheduler, {}),
}
_OPTIONS: dict[StepSchedule | None, dict[str, Any]] = {
    None: {},
    StepSchedule.UNIFORM: {"timestep_spacing": "linspace"},
    StepSchedule.SGM_UNIFORM: {"timestep_spacing": "trailing"},
    StepSchedule.KARRAS: {"use_karras_sigmas": True},
    StepSchedule.EXPONENTIAL: {"use_exponential_sigmas": True},
}
PAIRS = [(sampler, None) for sampler in Sampler] + [
    (sampler, schedule)
    for sampler in Sampler
    for schedule in StepSchedule
    if sampler is not Sampler.LCM and (sampler is not Sampler.DDIM or schedule not in RAMPS)
]
"""Samplers and the schedules that there are for them."""


class _AncestralOnRamps(EulerAncestralDiscreteScheduler):
    """diffusers has none: Euler's sigmas, ancestral steps."""

    euler: EulerDiscreteScheduler

    def set_timesteps(self, *arguments: Any, **settings: Any) -> None:
        self.euler.set_timesteps(*arguments, **settings)
        super().set_timesteps(*arguments, **settings)
        self.sigmas, self.timesteps = self.euler.sigmas, self.euler.timesteps


def diffusers_scheduler(
    config: Mapping[str, Any], sampler: Sampler, schedule: StepSchedule | None = None, **more: Any
) -> Any:
    """The scheduler of a name, as a base's is changed for it."""
    kind, options = _CLASSES[sampler]
    options = {**options, **_OPTIONS[schedule], **more}
    if sampler is Sampler.EULER_ANCESTRAL and schedule in RAMPS:
        ancestral = _AncestralOnRamps.from_config(config)
        ancestral.euler = EulerDiscreteScheduler.from_config(config, **options)
        return ancestral
    return kind.from_config(config, **options)
