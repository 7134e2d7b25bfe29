"""Diffusion models of pixels: their noise schedules, and holes filled by them as RePaint does.

Shapes: B rows, 3 channels, H x W pixels in [-1, 1]; a hole is 1 where to paint, 0 where to keep.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from inpaint.device import on_device
from inpaint.diffusion.samplers import step, visiting
from inpaint.diffusion.schedule import NoiseSchedule, PredictionType, sampling_timesteps
from inpaint.errors import InpaintError

Predict = Callable[[Tensor, Tensor], Tensor]
"""(noisy B 3 H W, timesteps B) -> what the model outputs there, B 3 H W."""
Draw = Callable[[], Tensor]
"""Standard normal numbers, B 3 H W, new ones at each call."""
OnStep = Callable[[int, int, Tensor], None]
"""Called after each network evaluation with (evaluations done, all of them, the picture so far)."""


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
        if self.noise is Noise.LINEAR:
            scale = 1000 / self.timesteps  # fewer timesteps end as noisy
            betas_T = torch.linspace(1e-4 * scale, min(0.02 * scale, 0.999), self.timesteps, dtype=torch.float64)
        else:
            share = torch.arange(self.timesteps + 1, dtype=torch.float64) / self.timesteps
            signal = torch.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2
            betas_T = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
        return NoiseSchedule(
            alphas_cumprod_T=torch.cumprod(1 - betas_T, dim=0).float(),
            prediction_type=self.prediction_type,
            # Sampling begins with pure noise, and only the last timestep is nearly that (Lin 2023, section 3.3).
            timestep_spacing="trailing",
            clip_range=1.0,
        )


class PixelSampler(StrEnum):
    """How noise becomes a picture."""

    DDIM = "ddim"
    """Few steps, nothing random after the first noise (Song 2020)."""
    DDPM = "ddpm"
    """Ancestral: new noise at each step (Ho 2020); wants many steps."""


@dataclass(frozen=True, kw_only=True)
class PixelSampling:
    """How a hole is sampled. The cost is `evaluations`."""

    steps: int = 50
    """Sampling steps, without those that resampling repeats."""
    sampler: PixelSampler = PixelSampler.DDIM
    """How noise becomes a picture."""
    jump_length: int = 5
    """RePaint: how many steps are undone at a time."""
    jump_count: int = 1
    """RePaint: how often each stretch of `jump_length` steps is sampled; 1: no resampling."""

    def __post_init__(self) -> None:
        if min(self.steps, self.jump_length, self.jump_count) < 1:
            raise InpaintError(
                f"steps {self.steps}, jump_length {self.jump_length}, jump_count {self.jump_count}: each at least 1"
            )

    @property
    def evaluations(self) -> int:
        """Network evaluations per picture."""
        return self.steps * self.jump_count

    def moves(self) -> list[tuple[int, int]]:
        """What is done, as (steps done before, after): (3, 4) samples one step, (5, 0) adds the noise of five again.

        As RePaint's schedule (Lugmayr 2022, algorithm 1 and section 4.2): after every `jump_length` steps, the noise of
        these steps is added again and they are sampled once more, `jump_count` times in all.
        """
        moves = []
        for start in range(0, self.steps, self.jump_length):
            end = min(start + self.jump_length, self.steps)
            once = [(done, done + 1) for done in range(start, end)]
            moves += once + [(end, start), *once] * (self.jump_count - 1)
        return moves


def fill(
    predict: Predict,
    schedule: NoiseSchedule,
    known_B3HW: Tensor,
    hole_B1HW: Tensor,
    sampling: PixelSampling,
    draw: Draw,
    on_step: OnStep | None = None,
) -> Tensor:
    """Pictures whose holes are sampled and whose kept pixels are `known_B3HW` exactly, float32.

    Outside the hole every x_t is replaced by the known pixels, noised to t (Lugmayr 2022, eq. 8). DDIM without
    resampling uses one noise for all t, since its own path has but one; else it is drawn anew each time. Raises
    InpaintError for more steps than the schedule has timesteps.
    """
    device, is_ddpm = known_B3HW.device, sampling.sampler is PixelSampler.DDPM
    timesteps_S = sampling_timesteps(schedule, sampling.steps)
    a = [*schedule.alphas_cumprod_T[timesteps_S].tolist(), schedule.final_alpha_cumprod]
    path = visiting(schedule, timesteps_S.numpy(), np.array(a[1:]), ancestral=is_ddpm)
    table_SK, times_S = on_device(path.table_SK, device), on_device(timesteps_S, device)
    first_B3HW = draw()

    def with_known(noisy_B3HW: Tensor, done: int) -> Tensor:
        known = known_B3HW
        if done < sampling.steps:
            noise = draw() if is_ddpm or sampling.jump_count > 1 else first_B3HW
            known = math.sqrt(a[done]) * known_B3HW + math.sqrt(1 - a[done]) * noise
        return torch.where(hole_B1HW > 0, noisy_B3HW, known)

    noisy_B3HW = with_known(first_B3HW, 0)
    evaluated = 0
    for before, after in sampling.moves():
        if after < before:  # q(x_u | x_t) for later timesteps u > t (Ho 2020, eq. 2)
            kept = a[after] / a[before]
            noisy_B3HW = with_known(math.sqrt(kept) * noisy_B3HW + math.sqrt(1 - kept) * draw(), after)
            continue
        output_B3HW = predict(noisy_B3HW, times_S[before].expand(len(noisy_B3HW))).float()
        noise = draw() if is_ddpm else None
        line_1K = table_SK[before:after]
        noisy_B3HW, _ = step(line_1K, output_B3HW, noisy_B3HW, noise=noise, clip_range=schedule.clip_range)
        noisy_B3HW = with_known(noisy_B3HW, after)
        evaluated += 1
        if on_step is not None:
            on_step(evaluated, sampling.evaluations, noisy_B3HW)
    return noisy_B3HW
