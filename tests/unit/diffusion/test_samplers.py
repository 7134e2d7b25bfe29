"""Every sampler steps as the diffusers scheduler of its name, for rows of all of them in one call."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)

from inpaint.diffusion.samplers import Sampler, column, step, trajectory
from inpaint.diffusion.schedule import schedule_of
from inpaint.errors import InpaintError
from tests.tiny import tiny_scheduler

THEIRS = {
    Sampler.DDIM: DDIMScheduler,
    Sampler.EULER: EulerDiscreteScheduler,
    Sampler.EULER_ANCESTRAL: EulerAncestralDiscreteScheduler,
    Sampler.DPMPP_2M: DPMSolverMultistepScheduler,
    Sampler.LCM: LCMScheduler,
}
SPACINGS = ["leading", "trailing", "linspace", None]
SHAPE = (1, 4, 5, 6)


def stored(spacing: str | None, prediction_type: str = "epsilon", offset: int = 1) -> PNDMScheduler:
    """As SD 1.5 stores its scheduler: PNDM, whose file may say nothing about the spacing."""
    said = {} if spacing is None else {"timestep_spacing": spacing}
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=offset,
        set_alpha_to_one=False,
        prediction_type=prediction_type,
        **said,
    )


def model(latents: torch.Tensor, timestep: float) -> torch.Tensor:
    """Depends on both, so that a wrong input or timestep shows."""
    return torch.tanh(latents.roll(1, -1) * 0.7 + float(timestep) / 1000)


def theirs(sampler: Sampler, source: PNDMScheduler, steps: int, strength: float) -> list[torch.Tensor]:
    """The latents before each step and after the last, as diffusers' inpaint pipeline makes them; and the known."""
    clipped = {"clip_sample": False} if sampler in (Sampler.DDIM, Sampler.LCM) else {}
    scheduler = THEIRS[sampler].from_config(source.config, **clipped)
    scheduler.set_timesteps(steps)
    first = steps - int(steps * strength)
    scheduler.set_begin_index(first) if hasattr(scheduler, "set_begin_index") else None
    generator = torch.Generator().manual_seed(3)
    image, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    times = scheduler.timesteps[first:]
    latents = noise * scheduler.init_noise_sigma if strength == 1 else scheduler.add_noise(image, noise, times[:1])
    found = [latents]
    extra = {} if sampler in (Sampler.DDIM, Sampler.DPMPP_2M) else {"generator": generator}
    for index, time in enumerate(times):
        output = model(scheduler.scale_model_input(latents, time), time)
        latents = scheduler.step(output, time, latents, **extra).prev_sample
        known = image if index == len(times) - 1 else scheduler.add_noise(image, noise, times[index + 1 : index + 2])
        found += [latents, known]
    return found


def ours(sampler: Sampler, source: PNDMScheduler, steps: int, strength: float) -> list[torch.Tensor]:
    table = trajectory(schedule_of(source), sampler, steps, strength)
    generator = torch.Generator().manual_seed(3)
    image, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    latents, previous = table.start_clean * image + table.start_noise * noise, torch.zeros(SHAPE)
    found = [latents]
    for index, time in enumerate(table.timesteps_S):
        line = torch.from_numpy(table.table_SK[index : index + 1])
        output = model(latents * column(line, "scale_input", 4), time)
        draws = bool(column(line, "next_noise", 1))
        fresh = torch.randn(SHAPE, generator=generator) if draws else None
        latents, previous = step(line, output, latents, previous, fresh)
        known = column(line, "known_clean", 4) * image + column(line, "known_noise", 4) * noise
        found += [latents, known]
    return found


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", list(Sampler))
def test_every_step_is_diffusers(sampler, spacing, prediction_type, strength):
    source = stored(spacing, prediction_type)
    for steps in (4, 20):
        wanted, found = theirs(sampler, source, steps, strength), ours(sampler, source, steps, strength)
        assert len(wanted) == len(found) == 1 + 2 * int(steps * strength)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-5)


@pytest.mark.parametrize("sampler", [s for s in Sampler if s != Sampler.LCM])
@pytest.mark.parametrize("steps", [1, 2, 3, 37, 250])
def test_few_and_many_steps_are_diffusers(sampler, steps):
    source = stored("leading", offset=0)
    wanted, found = theirs(sampler, source, steps, 1.0), ours(sampler, source, steps, 1.0)
    torch.testing.assert_close(found[-2], wanted[-2], atol=5e-4, rtol=1e-4)


def test_rows_of_all_samplers_step_in_one_call():
    schedule = schedule_of(tiny_scheduler())
    tables = [trajectory(schedule, sampler, 5 + i) for i, sampler in enumerate(Sampler)]
    places = [0, 3, 2, 4, 1]
    lines = torch.from_numpy(np.stack([t.table_SK[p] for t, p in zip(tables, places, strict=True)]))
    output, latents, previous, noise = torch.randn(4, len(tables), 4, 3, 3)
    together, clean = step(lines, output, latents, previous, noise)
    for row in range(len(tables)):
        one = slice(row, row + 1)
        alone = step(lines[one], output[one], latents[one], previous[one], noise[one])
        torch.testing.assert_close(together[one], alone[0])
        torch.testing.assert_close(clean[one], alone[1])


@pytest.mark.parametrize("clip_sample", [False, True])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_clean_samples_are_clipped_as_ddim_clips_them(prediction_type, clip_sample):
    scheduler = DDIMScheduler.from_config(tiny_scheduler(prediction_type).config, clip_sample=clip_sample)
    schedule = schedule_of(scheduler)
    table = trajectory(schedule, Sampler.DDIM, 10)
    scheduler.set_timesteps(10)
    latents, output = torch.randn(2, *SHAPE)
    line = torch.from_numpy(table.table_SK[4:5])
    found, _ = step(line, output, latents, clip_range=schedule.clip_range)
    wanted = scheduler.step(output, scheduler.timesteps[4], latents).prev_sample
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_strength_takes_the_last_share_of_the_steps():
    schedule = schedule_of(tiny_scheduler())
    whole, part = (trajectory(schedule, Sampler.DDIM, 10, s) for s in (1.0, 0.35))
    assert part.timesteps_S.tolist() == whole.timesteps_S[-3:].tolist()
    assert (whole.start_clean, whole.start_noise) == (0.0, 1.0)
    assert part.start_clean**2 + part.start_noise**2 == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("sampler", "steps", "strength", "words"),
    [
        (Sampler.DDIM, 0, 1.0, "steps 0"),
        (Sampler.EULER, 1001, 1.0, "steps 1001"),
        (Sampler.DPMPP_2M, 1000, 1.0, "at most 999"),
        (Sampler.LCM, 51, 1.0, "at most 50"),
        (Sampler.EULER, 4, 0.2, "strength 0.2: of 4 steps it leaves none"),
    ],
)
def test_what_cannot_be_sampled_is_refused_by_name(sampler, steps, strength, words):
    with pytest.raises(InpaintError, match=words):
        trajectory(schedule_of(tiny_scheduler()), sampler, steps, strength)


def test_stored_settings_that_the_tables_are_not_made_for_are_refused():
    karras = EulerDiscreteScheduler.from_config(tiny_scheduler().config, use_karras_sigmas=True)
    schedule = schedule_of(karras)
    for sampler in (Sampler.EULER, Sampler.DPMPP_2M):
        with pytest.raises(InpaintError, match="use_karras_sigmas True"):
            trajectory(schedule, sampler, 5)
    assert len(trajectory(schedule, Sampler.DDIM, 5)) == 5
