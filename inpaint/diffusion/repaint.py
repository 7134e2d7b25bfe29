"""Filling holes with a diffusion model of pixels: the known region enforced at each step, and RePaint's resampling.

Shapes: B rows, 3 channels, H x W pixels in [-1, 1]; a hole is 1 where to paint, 0 where to keep.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from inpaint.diffusion.ddpm import ddim_step, ddpm_step, renoise
from inpaint.diffusion.schedule import NoiseSchedule, add_noise, sampling_timesteps
from inpaint.errors import InpaintError

Predict = Callable[[Tensor, Tensor], Tensor]
"""(noisy B 3 H W, timesteps B) -> what the model outputs there, B 3 H W."""
Draw = Callable[[], Tensor]
"""Standard normal numbers, B 3 H W, new ones at each call."""
OnStep = Callable[[int, int, Tensor], None]
"""Called after each network evaluation with (evaluations done, all of them, the picture so far)."""


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
        return sum(after > before for before, after in self.moves())

    def moves(self) -> list[tuple[int, int]]:
        """What is done, as (steps done before, after): (3, 4) samples one step, (5, 0) adds the noise of five again.

        As RePaint's schedule (Lugmayr 2022, algorithm 1 and section 4.2): after every `jump_length` steps, the noise of
        these steps is added again and they are sampled once more, `jump_count` times in all.
        """
        moves = []
        for start in range(0, self.steps, self.jump_length):
            end = min(start + self.jump_length, self.steps)
            for turn in range(self.jump_count):
                if turn:
                    moves.append((end, start))
                moves += [(step, step + 1) for step in range(start, end)]
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
    resampling uses one noise for all t, since its own path has but one; else it is drawn anew each time.

    Raises:
        InpaintError: more steps than the schedule has timesteps.
    """
    timesteps = [*sampling_timesteps(schedule, sampling.steps).tolist(), -1]
    first_B3HW = draw()
    anew = sampling.jump_count > 1 or sampling.sampler is PixelSampler.DDPM

    def at(step: int) -> Tensor:
        return torch.full((len(known_B3HW),), timesteps[step], device=known_B3HW.device)

    def with_known(noisy_B3HW: Tensor, step: int) -> Tensor:
        if timesteps[step] < 0:
            known = known_B3HW
        else:
            known = add_noise(schedule, known_B3HW, draw() if anew else first_B3HW, at(step))
        return torch.where(hole_B1HW > 0, noisy_B3HW, known)

    noisy_B3HW = with_known(first_B3HW, 0)
    done, total = 0, sampling.evaluations
    for before, after in sampling.moves():
        if after < before:
            noisy_B3HW = with_known(renoise(schedule, noisy_B3HW, at(before), at(after), draw()), after)
            continue
        output_B3HW = predict(noisy_B3HW, at(before)).float()
        if sampling.sampler is PixelSampler.DDIM:
            noisy_B3HW = ddim_step(schedule, output_B3HW, noisy_B3HW, at(before), at(after))
        else:
            noisy_B3HW = ddpm_step(schedule, output_B3HW, noisy_B3HW, at(before), at(after), draw())
        noisy_B3HW = with_known(noisy_B3HW, after)
        done += 1
        if on_step is not None:
            on_step(done, total, noisy_B3HW)
    return noisy_B3HW
