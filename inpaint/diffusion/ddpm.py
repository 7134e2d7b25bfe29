"""Noise schedules of a model that is trained from scratch, and the steps that sample it (Ho 2020, Song 2020).

Notation and shapes as in `inpaint.diffusion.schedule`.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from inpaint.diffusion.schedule import NoiseSchedule, PredictionType, alphas_at, predicted_clean_and_noise
from inpaint.errors import InpaintError


class Noise(StrEnum):
    """How the noise grows with the timestep."""

    LINEAR = "linear"
    """Betas rise evenly from 1e-4 to 0.02 over 1000 timesteps (Ho 2020, section 4)."""
    COSINE = "cosine"
    """a_t falls as a squared cosine (Nichol 2021, eq. 17), which wastes fewer timesteps on pure noise."""


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    """The schedule of a model of pixels in [-1, 1]."""

    noise: Noise = Noise.LINEAR
    """How the noise grows with the timestep."""
    timesteps: int = 1000
    """Of training."""
    prediction_type: PredictionType = "epsilon"
    """What the model outputs: the noise, or v (Salimans 2022)."""

    def __post_init__(self) -> None:
        if self.timesteps < 2:
            raise InpaintError(f"timesteps {self.timesteps}: give at least 2; 1000 is usual")

    def schedule(self) -> NoiseSchedule:
        """The schedule; predicted clean pixels are clamped to [-1, 1], and sampling begins at the last timestep."""
        betas_T = linear_betas(self.timesteps) if self.noise is Noise.LINEAR else cosine_betas(self.timesteps)
        return NoiseSchedule(
            alphas_cumprod_T=torch.cumprod(1 - betas_T, dim=0).float(),
            prediction_type=self.prediction_type,
            # Sampling begins with pure noise, and only the last timestep is nearly that (Lin 2023, section 3.3).
            timestep_spacing="trailing",
            clip_range=1.0,
        )


def linear_betas(timesteps: int) -> Tensor:
    """Variances added at each timestep, float64; scaled so that fewer timesteps end as noisy as 1000."""
    scale = 1000 / timesteps
    return torch.linspace(1e-4 * scale, min(0.02 * scale, 0.999), timesteps, dtype=torch.float64)


def cosine_betas(timesteps: int) -> Tensor:
    """Variances added at each timestep, float64 (Nichol 2021, eq. 17 with s = 0.008, clipped at 0.999)."""
    share = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    signal = torch.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - signal[1:] / signal[:-1]).clamp(max=0.999)


def ddim_step(
    schedule: NoiseSchedule, output: Tensor, noisy: Tensor, timesteps_B: Tensor, previous_B: Tensor
) -> Tensor:
    """A DDIM step with eta 0 (Song 2020, eq. 12), equal to diffusers' `DDIMScheduler.step`; float32.

    Args:
        previous_B: the timesteps stepped to; negative ends the sampling.
    """
    clean, noise = predicted_clean_and_noise(schedule, output, noisy, timesteps_B)
    if schedule.clip_range is not None:
        clean = clean.clamp(-schedule.clip_range, schedule.clip_range)
    a_s = alphas_at(schedule, previous_B, noisy.ndim)
    return a_s.sqrt() * clean + (1 - a_s).sqrt() * noise


def ddpm_step(
    schedule: NoiseSchedule, output: Tensor, noisy: Tensor, timesteps_B: Tensor, previous_B: Tensor, noise: Tensor
) -> Tensor:
    """A sample of q(x_s | x_t, x_0) at the predicted x_0 (Ho 2020, eq. 6 and 7), float32.

    Equal to diffusers' `DDPMScheduler.step` with `variance_type="fixed_small"`, and to DDIM with eta 1.

    Args:
        previous_B: the timesteps s stepped to; negative ends the sampling, where nothing random is left.
        noise: standard normal, of `noisy`'s shape.
    """
    clean, _ = predicted_clean_and_noise(schedule, output, noisy, timesteps_B)
    if schedule.clip_range is not None:
        clean = clean.clamp(-schedule.clip_range, schedule.clip_range)
    a_t, a_s = (alphas_at(schedule, t_B, noisy.ndim) for t_B in (timesteps_B, previous_B))
    kept = a_t / a_s
    mean = (a_s.sqrt() * (1 - kept) * clean + kept.sqrt() * (1 - a_s) * noisy) / (1 - a_t)
    variance = (1 - kept) * (1 - a_s) / (1 - a_t)
    return mean + variance.sqrt() * noise


def renoise(schedule: NoiseSchedule, noisy: Tensor, timesteps_B: Tensor, later_B: Tensor, noise: Tensor) -> Tensor:
    """A sample of q(x_u | x_t) for later timesteps u > t (Ho 2020, eq. 2); negative t stands for clean pixels."""
    a_t, a_u = (alphas_at(schedule, t_B, noisy.ndim) for t_B in (timesteps_B, later_B))
    kept = a_u / a_t
    return kept.sqrt() * noisy + (1 - kept).sqrt() * noise
