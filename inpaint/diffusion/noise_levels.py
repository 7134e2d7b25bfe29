"""Noise levels that sampling visits: timesteps, and sigmas, each the noise over the signal at its timestep.

Spaced as diffusers' schedulers space them. Shapes: S sampling steps, falling; all numpy, float64.
"""

from enum import StrEnum
from typing import Literal

import numpy as np

from inpaint.diffusion.schedule import NoiseSchedule, sampling_timesteps
from inpaint.errors import InpaintError

Array = np.ndarray

_SMALLEST_ALPHA = 2.0**-24
"""diffusers' stand-in for a last a_t of zero, whose sigma would be infinite."""
_RHO = 7.0


class StepSchedule(StrEnum):
    """Which noise levels the steps visit; each is what diffusers' schedulers make of one setting."""

    UNIFORM = "uniform"
    """Even in timesteps, to the very first: `timestep_spacing="linspace"`."""
    SGM_UNIFORM = "sgm_uniform"
    """Even in timesteps, a step short of the first: `timestep_spacing="trailing"`."""
    KARRAS = "karras"
    """`use_karras_sigmas`: Karras 2022, eq. 5."""
    EXPONENTIAL = "exponential"
    """`use_exponential_sigmas`: even in the sigmas' logarithm."""


SPACINGS: dict[StepSchedule | None, Literal["linspace", "trailing"]] = {
    StepSchedule.UNIFORM: "linspace",
    StepSchedule.SGM_UNIFORM: "trailing",
}
RAMPS = (StepSchedule.KARRAS, StepSchedule.EXPONENTIAL)


def ramp_of(schedule: NoiseSchedule, wanted: StepSchedule | None) -> StepSchedule | None:
    """The one of `RAMPS` that is wanted or, where nothing is, that the base states."""
    stated = (ramp for ramp in RAMPS if schedule.stated.get(f"use_{ramp}_sigmas"))
    return next(stated, None) if wanted is None else wanted if wanted in RAMPS else None


def alphas(schedule: NoiseSchedule) -> Array:
    """a_t of all training timesteps, T."""
    return schedule.alphas_cumprod_T.double().numpy()


def sigmas_at(schedule: NoiseSchedule, times_S: Array) -> Array:
    """Interpolated between timesteps."""
    a_T = alphas(schedule).clip(min=_SMALLEST_ALPHA)
    return np.interp(times_S, np.arange(len(a_T)), np.sqrt((1 - a_T) / a_T))


def euler_levels(schedule: NoiseSchedule, steps: int, ramp: StepSchedule | None) -> tuple[Array, Array]:
    """Timesteps and sigmas of Euler's and Heun's method. A ramp goes from the first to the last of them."""
    if schedule.timestep_spacing in (None, "linspace"):
        times_S = np.linspace(0, schedule.train_timesteps - 1, steps, dtype=np.float32)[::-1]
    else:
        times_S = sampling_timesteps(schedule, steps).numpy()
    sigmas_S = sigmas_at(schedule, times_S)
    if ramp is None:
        return times_S, sigmas_S
    sigmas_S = _ramp(ramp, sigmas_S[0], sigmas_S[-1], steps)
    return _times_of(schedule, sigmas_S), sigmas_S


def multistep_levels(
    schedule: NoiseSchedule, steps: int, ramp: StepSchedule | None, *, whole: bool
) -> tuple[Array, Array]:
    """Timesteps and sigmas of the DPM++ solvers and UniPC. A ramp goes over all sigmas of training, and its timesteps
    are whole. Args: whole: UniPC, which rounds Karras' timesteps on any base."""
    count, spacing = schedule.train_timesteps, schedule.timestep_spacing
    if steps >= count:
        raise InpaintError(f"steps {steps}: this sampler takes at most {count - 1} on this base")
    if ramp is not None:
        ends = sigmas_at(schedule, np.array([count - 1, 0]))
        sigmas_S = _ramp(ramp, ends[0], ends[1], steps)
        times_S = _times_of(schedule, sigmas_S)
        rounded = ramp is StepSchedule.KARRAS and (whole or schedule.stated.get("beta_schedule") != "squaredcos_cap_v2")
        return (times_S.round() if rounded else np.floor(times_S)), sigmas_S
    if spacing == "leading":
        times_S = (np.arange(steps, 0, -1) * (count // (steps + 1))) + schedule.steps_offset
    elif spacing == "trailing":
        times_S = sampling_timesteps(schedule, steps).numpy()
    else:
        times_S = np.linspace(0, count - 1, steps + 1).round()[:0:-1]
    return times_S, sigmas_at(schedule, times_S)


def _ramp(ramp: StepSchedule, highest: float, lowest: float, steps: int) -> Array:
    share_S = np.linspace(0, 1, steps)
    if ramp is StepSchedule.EXPONENTIAL:
        return np.exp(np.linspace(np.log(highest), np.log(lowest), steps))
    return (highest ** (1 / _RHO) + share_S * (lowest ** (1 / _RHO) - highest ** (1 / _RHO))) ** _RHO


def _times_of(schedule: NoiseSchedule, sigmas_S: Array) -> Array:
    """Timesteps between those of training, even in the sigmas' logarithm."""
    # In float32 as in diffusers: where timesteps are rounded afterwards, a last bit decides.
    a_T = schedule.alphas_cumprod_T.numpy().clip(min=_SMALLEST_ALPHA)
    return np.interp(np.log(sigmas_S), np.log(np.sqrt((1 - a_T) / a_T)), np.arange(len(a_T)))
