"""Noise schedules of discrete-time diffusion: coefficients and conversions, pure functions of per-row timesteps.

Notation: a_t = `alphas_cumprod[t]`, x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e (Ho 2020, eq. 4) and
v = sqrt(a_t) e - sqrt(1 - a_t) x_0 (Salimans 2022, sec. 4). Shapes: B rows, T training timesteps, S sampling steps;
`clean`, `noise` and `output` are B x anything. Results are float32, whatever the inputs' precision, for 1 - a_t needs
it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from inpaint.device import on_device
from inpaint.errors import InpaintError

PredictionType = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseSchedule:
    """A noise schedule and how its model is to be read."""

    alphas_cumprod_T: Tensor
    """Share of the clean signal's variance at each training timestep, falling from about 1 to about 0; on the CPU."""
    prediction_type: PredictionType = "epsilon"
    """What the model outputs: the noise e, or v."""
    final_alpha_cumprod: float = 1.0
    """a_t "before" timestep 0: 1, or a_0 where the base was trained with `set_alpha_to_one=False`."""
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None = None
    """Which timesteps sampling visits (Lin 2023, table 2); None where the base does not say: each sampler's default."""
    steps_offset: int = 0
    """Added to leading timesteps; 1 for Stable Diffusion."""
    clip_range: float | None = None
    """Predicted clean samples are clamped to this; None for latents, 1 for a model of pixels."""
    stated: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the base's scheduler that its file states, which any other scheduler is made from."""

    @property
    def train_timesteps(self) -> int:
        return len(self.alphas_cumprod_T)

    def check_steps(self, steps: int) -> None:
        """Raises InpaintError where there are not as many timesteps."""
        if not 1 <= steps <= self.train_timesteps:
            raise InpaintError(f"steps {steps}: this base can be sampled in 1 to {self.train_timesteps} steps")


def schedule_of(scheduler: Any) -> NoiseSchedule:
    """The schedule of a diffusers scheduler of any kind, as `DDIMScheduler.from_config(scheduler.config)` reads it.

    One difference: where the config says nothing about `clip_sample`, nothing is clipped. DDIMScheduler's own default
    is made for pixels and spoils latents. Raises InpaintError for settings that are not supported.
    """
    config: Mapping[str, Any] = scheduler.config
    # diffusers notes which settings are its class's defaults, and hands only the others to another class.
    defaults = config.get("_use_default_values", ())
    stated = {name: value for name, value in config.items() if name not in defaults and not name.startswith("_")}
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in ("epsilon", "v_prediction"):
        raise InpaintError(f"scheduler: prediction_type {prediction_type!r}; supported are epsilon, v_prediction")
    spacing = stated.get("timestep_spacing")
    if spacing not in (None, "leading", "trailing", "linspace"):
        raise InpaintError(f"scheduler: timestep_spacing {spacing!r}; supported are leading, trailing, linspace")
    if config.get("thresholding", False):
        raise InpaintError("scheduler: thresholding is not supported; set it to false in scheduler_config.json")
    alphas_cumprod_T = scheduler.alphas_cumprod.float().cpu()
    return NoiseSchedule(
        alphas_cumprod_T=alphas_cumprod_T,
        prediction_type=prediction_type,
        final_alpha_cumprod=1.0 if config.get("set_alpha_to_one", True) else float(alphas_cumprod_T[0]),
        timestep_spacing=spacing,
        steps_offset=int(config.get("steps_offset", 0)),
        clip_range=float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", False) else None,
        stated=stated,
    )


def add_noise(schedule: NoiseSchedule, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
    """x_t (Ho 2020, eq. 4)."""
    a = _alphas_at(schedule, timesteps_B, clean.ndim)
    return a.sqrt() * clean + (1 - a).sqrt() * noise


def target(schedule: NoiseSchedule, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
    """What the model is trained to output at x_t: the noise, or v."""
    if schedule.prediction_type == "epsilon":
        return noise
    a = _alphas_at(schedule, timesteps_B, clean.ndim)
    return a.sqrt() * noise - (1 - a).sqrt() * clean


def snr(schedule: NoiseSchedule, timesteps_B: Tensor) -> Tensor:
    """Signal-to-noise ratio a_t / (1 - a_t) per row (Kingma 2021, eq. 2)."""
    a_B = _alphas_at(schedule, timesteps_B, 1)
    return a_B / (1 - a_B)


def sampling_timesteps(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Timesteps (S, int64, falling) that `steps` sampling steps visit, as `DDIMScheduler.set_timesteps` gives them.
    Raises InpaintError for more steps than the model has timesteps for, also because of the base's offset."""
    schedule.check_steps(steps)
    count, spacing = schedule.train_timesteps, schedule.timestep_spacing or "leading"
    if spacing == "leading":
        timesteps_S = torch.arange(steps) * (count // steps) + schedule.steps_offset
    elif spacing == "linspace":
        timesteps_S = torch.linspace(0, count - 1, steps, dtype=torch.float64).round().long()
    else:
        # Cut: where `count / steps` is rounded down, diffusers visits one more, which is -1.
        timesteps_S = torch.arange(count, 0, -count / steps, dtype=torch.float64)[:steps].round().long().flip(0) - 1
    if int(timesteps_S[-1]) >= count:
        raise InpaintError(
            f"steps {steps}: with this base's steps_offset at most {count - schedule.steps_offset} steps"
        )
    return timesteps_S.flip(0)


def _alphas_at(schedule: NoiseSchedule, timesteps_B: Tensor, ndim: int) -> Tensor:
    """a_t per row, shaped B x 1 x ... with `ndim` dimensions."""
    return _alphas_on(schedule, timesteps_B.device)[timesteps_B].reshape(-1, *[1] * (ndim - 1))


@lru_cache(maxsize=16)
def _alphas_on(schedule: NoiseSchedule, device: torch.device) -> Tensor:
    return on_device(schedule.alphas_cumprod_T, device)
