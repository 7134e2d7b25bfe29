"""The schedule says what diffusers' DDIMScheduler says, for every row's own timestep."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler

from inpaint.diffusion.samplers import step, visiting
from inpaint.diffusion.schedule import add_noise, sampling_timesteps, schedule_of, snr, target
from inpaint.errors import InpaintError
from tests.tiny import tiny_scheduler

PREDICTION_TYPES = ["epsilon", "v_prediction"]


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    clean, noise = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    return clean, noise


def test_noise_and_velocity_per_row_are_diffusers():
    scheduler = tiny_scheduler("v_prediction")
    schedule = schedule_of(scheduler)
    clean, noise = rows()
    timesteps = torch.tensor([0, 500, 999])
    assert torch.equal(add_noise(schedule, clean, noise, timesteps), scheduler.add_noise(clean, noise, timesteps))
    wanted = scheduler.get_velocity(clean, noise, timesteps)
    assert torch.equal(target(schedule, clean, noise, timesteps), wanted)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_perfect_output_gives_back_clean_and_the_next_noisy_sample(prediction_type):
    schedule = schedule_of(tiny_scheduler(prediction_type))
    clean, noise = rows()
    timesteps, following = torch.tensor([1, 400, 800]), torch.tensor([0, 350, 10])
    noisy = add_noise(schedule, clean, noise, timesteps)
    output = target(schedule, clean, noise, timesteps)
    path = visiting(schedule, timesteps.numpy(), schedule.alphas_cumprod_T[following].double().numpy())
    found, found_clean = step(torch.from_numpy(path.table_SK), output, noisy)
    torch.testing.assert_close(found_clean, clean, atol=1e-4, rtol=0)
    torch.testing.assert_close(found, add_noise(schedule, clean, noise, following), atol=1e-4, rtol=0)


def test_snr_is_signal_over_noise():
    schedule = schedule_of(tiny_scheduler())
    timesteps = torch.tensor([0, 999])
    a = schedule.alphas_cumprod_T[timesteps]
    assert torch.equal(snr(schedule, timesteps), a / (1 - a))


@pytest.mark.parametrize("steps", [1, 7, 25, 50, 999])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_sampling_timesteps_are_ddims(spacing, steps):
    scheduler = DDIMScheduler.from_config(tiny_scheduler().config, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    assert sampling_timesteps(schedule_of(scheduler), steps).tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_there_are_as_many_timesteps_as_steps_whatever_is_rounded(spacing):
    schedule = schedule_of(DDIMScheduler.from_config(tiny_scheduler().config, timestep_spacing=spacing))
    for steps in range(1, 1000):
        visited = sampling_timesteps(schedule, steps)
        assert len(visited) == steps and visited.diff().lt(0).all() and visited[-1] >= 0, steps


@pytest.mark.parametrize("steps", [0, 1000, 1001])
def test_steps_out_of_range_are_refused(steps):
    with pytest.raises(InpaintError, match=f"steps {steps}: .*(1000|999)"):
        sampling_timesteps(schedule_of(tiny_scheduler()), steps)


@pytest.mark.parametrize("kind", [PNDMScheduler, EulerDiscreteScheduler])
def test_other_stored_schedulers_are_read_as_ddim(kind):
    # Stable Diffusion 1.5 stores PNDM and SDXL Euler; painting uses DDIM with their settings.
    stored = kind.from_config(tiny_scheduler().config)
    ours, theirs = schedule_of(stored), DDIMScheduler.from_config(stored.config)
    assert torch.equal(ours.alphas_cumprod_T, theirs.alphas_cumprod)
    assert ours.final_alpha_cumprod == float(theirs.final_alpha_cumprod)
    assert (ours.steps_offset, ours.clip_range) == (1, None)
    theirs.set_timesteps(7)
    assert sampling_timesteps(ours, 7).tolist() == theirs.timesteps.tolist()


def test_unsupported_settings_are_named():
    for setting, value in (("prediction_type", "sample"), ("thresholding", True)):
        with pytest.raises(InpaintError, match=setting):
            schedule_of(DDIMScheduler.from_config(tiny_scheduler().config, **{setting: value}))
