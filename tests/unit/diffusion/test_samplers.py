"""Every sampler steps as the diffusers scheduler of its name, for rows of all of them in one call."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler

from inpaint.diffusion.noise_levels import StepSchedule
from inpaint.diffusion.samplers import Sampler, column, step, trajectory
from inpaint.diffusion.schedule import schedule_of
from inpaint.errors import InpaintError
from tests.schedulers import PAIRS, diffusers_scheduler
from tests.tiny import tiny_scheduler

DRAWING = (Sampler.EULER_ANCESTRAL, Sampler.DPMPP_2M_SDE, Sampler.LCM)
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


def theirs(
    sampler: Sampler, source: PNDMScheduler, steps: int, strength: float, schedule: StepSchedule | None = None
) -> list[torch.Tensor]:
    """The latents before each call and after the last, as diffusers' inpaint pipeline makes them; and the known."""
    clipped = {"clip_sample": False} if sampler in (Sampler.DDIM, Sampler.LCM) else {}
    scheduler = diffusers_scheduler(source.config, sampler, schedule, **clipped)
    scheduler.set_timesteps(steps)
    first = (steps - int(steps * strength)) * scheduler.order
    scheduler.set_begin_index(first) if hasattr(scheduler, "set_begin_index") else None
    generator = torch.Generator().manual_seed(3)
    image, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    times = scheduler.timesteps[first:]
    latents = noise * scheduler.init_noise_sigma if strength == 1 else scheduler.add_noise(image, noise, times[:1])
    found = [latents]
    extra = {"generator": generator} if sampler in DRAWING else {}
    for index, time in enumerate(times):
        output = model(scheduler.scale_model_input(latents, time), time)
        latents = scheduler.step(output, time, latents, **extra).prev_sample
        known = image if index == len(times) - 1 else scheduler.add_noise(image, noise, times[index + 1 : index + 2])
        found += [latents, known]
    return found


def ours(
    sampler: Sampler, source: PNDMScheduler, steps: int, strength: float, schedule: StepSchedule | None = None
) -> list[torch.Tensor]:
    table = trajectory(schedule_of(source), sampler, steps, strength, schedule)
    generator = torch.Generator().manual_seed(3)
    image, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    latents, previous, earlier = table.start_clean * image + table.start_noise * noise, *torch.zeros(2, *SHAPE)
    found = [latents]
    for index, time in enumerate(table.timesteps_S):
        line = torch.from_numpy(table.table_SK[index : index + 1])
        output = model(latents * column(line, "scale_input", 4), time)
        draws = bool(column(line, "next_noise", 1))
        fresh = torch.randn(SHAPE, generator=generator) if draws else None
        latents, clean = step(line, output, latents, previous, fresh, earlier=earlier)
        previous, earlier = clean, previous
        known = column(line, "known_clean", 4) * image + column(line, "known_noise", 4) * noise
        found += [latents, known]
    return found


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("sampler", "schedule", "spacing"),
    [(*pair, spacing) for pair in PAIRS for spacing in (SPACINGS if pair[1] is None else SPACINGS[:1])],
)
def test_every_step_is_diffusers(sampler, schedule, spacing, prediction_type, strength):
    source = stored(spacing, prediction_type)
    for steps in (4, 20):
        wanted, found = (made(sampler, source, steps, strength, schedule) for made in (theirs, ours))
        assert len(wanted) == len(found) == 1 + 2 * sampler.calls(int(steps * strength))
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
    places = [0, 3, 2, 5, 4, 1, 6, 3]
    lines = torch.from_numpy(np.stack([t.table_SK[p] for t, p in zip(tables, places, strict=True)]))
    output, latents, previous, noise, earlier = torch.randn(5, len(tables), 4, 3, 3)
    together, clean = step(lines, output, latents, previous, noise, earlier=earlier)
    for row in range(len(tables)):
        one = slice(row, row + 1)
        alone = step(lines[one], output[one], latents[one], previous[one], noise[one], earlier=earlier[one])
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


def test_a_base_that_states_a_schedule_is_sampled_with_it():
    karras = EulerDiscreteScheduler.from_config(tiny_scheduler().config, use_karras_sigmas=True)
    for sampler in Sampler:
        if sampler is not Sampler.LCM:
            wanted, found = theirs(sampler, karras, 5, 1.0), ours(sampler, karras, 5, 1.0)
            torch.testing.assert_close(found[-2], wanted[-2], atol=2e-4, rtol=2e-5)
    plain = ours(Sampler.EULER, tiny_scheduler(), 5, 1.0)[-2]
    assert not torch.allclose(ours(Sampler.EULER, karras, 5, 1.0)[-2], plain)


@pytest.mark.parametrize(
    ("sampler", "setting", "value"),
    [
        (Sampler.EULER, "final_sigmas_type", "sigma_min"),
        (Sampler.HEUN, "use_beta_sigmas", True),
        (Sampler.DPMPP_2M, "solver_type", "heun"),
        (Sampler.DPMPP_2M_SDE, "use_lu_lambdas", True),
        (Sampler.UNIPC, "solver_order", 3),
    ],
)
def test_stored_settings_that_the_tables_are_not_made_for_are_refused(sampler, setting, value):
    schedule = schedule_of(tiny_scheduler())
    with pytest.raises(InpaintError, match=f"{setting}.*(supported is|not supported)"):
        trajectory(replace(schedule, stated={**schedule.stated, setting: value}), sampler, 5)
    assert len(trajectory(replace(schedule, stated={setting: value}), Sampler.DDIM, 5)) == 5


@pytest.mark.parametrize(
    ("sampler", "wanted"),
    [(Sampler.DDIM, StepSchedule.KARRAS), (Sampler.LCM, StepSchedule.SGM_UNIFORM)],
)
def test_a_schedule_that_a_sampler_does_not_have_is_refused(sampler, wanted):
    with pytest.raises(InpaintError, match=f"schedule {wanted}: sampler {sampler} .*take euler"):
        trajectory(schedule_of(tiny_scheduler()), sampler, 5, 1.0, wanted)
