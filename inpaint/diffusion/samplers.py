"""Samplers: one pure function each. Rows are independent, so one call may step rows at different timesteps.

Shapes: B rows; `output` and `latents` are B x anything. Results are float32.
"""

from torch import Tensor

from inpaint.diffusion.schedule import Schedule, alphas_at, predicted_clean_and_noise


def ddim_step(schedule: Schedule, output: Tensor, latents: Tensor, timesteps_B: Tensor, previous_B: Tensor) -> Tensor:
    """One DDIM step with eta 0 (Song 2020, eq. 12), equal to diffusers' `DDIMScheduler.step`.

    Args:
        output: what the model says at `latents` and `timesteps_B`, in the schedule's prediction type.
        previous_B: the timesteps stepped to; negative ends the sampling (see `schedule.previous_timesteps`).
    """
    clean, noise = predicted_clean_and_noise(schedule, output, latents, timesteps_B)
    if schedule.clip_range is not None:
        clean = clean.clamp(-schedule.clip_range, schedule.clip_range)
    a_previous = alphas_at(schedule, previous_B, latents.ndim)
    return a_previous.sqrt() * clean + (1 - a_previous).sqrt() * noise
