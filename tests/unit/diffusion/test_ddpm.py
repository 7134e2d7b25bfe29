"""Schedules and steps of the DDPM against closed forms and diffusers' schedulers; RePaint's plan; known pixels."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from inpaint.diffusion.ddpm import Noise, NoiseSettings, PixelSampler, PixelSampling, fill
from inpaint.diffusion.samplers import step, visiting
from inpaint.diffusion.schedule import NoiseSchedule
from inpaint.errors import InpaintError

BETAS = {Noise.LINEAR: "linear", Noise.COSINE: "squaredcos_cap_v2"}
CASES = list(itertools.product(Noise, ("epsilon", "v_prediction")))


def config(noise: Noise, prediction: str) -> dict:
    betas = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": BETAS[noise]}
    return {**betas, "prediction_type": prediction, "clip_sample": True, "timestep_spacing": "trailing"}


def path_of(schedule: NoiseSchedule, visited: list[int], *, ancestral: bool) -> torch.Tensor:
    """The table of a run through `visited` to the clean picture."""
    a = schedule.alphas_cumprod_T[visited].double().numpy()
    return torch.from_numpy(visiting(schedule, np.array(visited), np.append(a[1:], 1.0), ancestral=ancestral).table_SK)


@pytest.mark.parametrize(("noise", "prediction"), CASES)
def test_a_ddim_run_is_diffusers(noise: Noise, prediction: str) -> None:
    theirs = DDIMScheduler(**config(noise, prediction))
    theirs.set_timesteps(20)
    schedule = NoiseSettings(noise=noise, prediction_type=prediction).schedule()
    assert torch.allclose(schedule.alphas_cumprod_T, theirs.alphas_cumprod, atol=1e-6)
    ours = expected = torch.randn(2, 3, 4, 4)
    visited = theirs.timesteps.tolist()
    for line, t in zip(path_of(schedule, visited, ancestral=False), visited, strict=True):
        output = torch.randn(2, 3, 4, 4)
        ours, _ = step(line[None], output, ours, clip_range=1.0)
        expected = theirs.step(output, t, expected).prev_sample
        assert torch.allclose(ours, expected, atol=2e-4)


@pytest.mark.parametrize(("noise", "prediction"), CASES)
def test_a_ddpm_step_is_diffusers(noise: Noise, prediction: str) -> None:
    theirs = DDPMScheduler(**config(noise, prediction), variance_type="fixed_small")
    theirs.set_timesteps(50)
    schedule = NoiseSettings(noise=noise, prediction_type=prediction).schedule()
    noisy, output = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    visited = theirs.timesteps.tolist()
    for line, t in zip(path_of(schedule, visited, ancestral=True), visited, strict=True):
        drawn = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(t))
        expected = theirs.step(output, t, noisy, generator=torch.Generator().manual_seed(t)).prev_sample
        ours, _ = step(line[None], output, noisy, noise=drawn, clip_range=1.0)
        assert torch.allclose(ours, expected, atol=2e-4), t


def test_linear_noise_in_closed_form() -> None:
    alphas = NoiseSettings().schedule().alphas_cumprod_T
    expected = 1.0
    for t in range(3):
        expected *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        assert alphas[t].item() == pytest.approx(expected, rel=1e-6)
    assert alphas[-1].item() == pytest.approx(4.0358e-5, rel=1e-3)


def test_moves_resample_every_stretch_and_cost_what_is_said() -> None:
    plan = PixelSampling(steps=5, jump_length=2, jump_count=2)
    stretches = [(0, 1), (1, 2)], [(2, 3), (3, 4)], [(4, 5)]
    back = [(2, 0)], [(4, 2)], [(5, 4)]
    assert plan.moves() == [m for s, b in zip(stretches, back, strict=True) for m in (*s, *b, *s)]
    assert plan.evaluations == 10
    assert PixelSampling(steps=7).moves() == [(i, i + 1) for i in range(7)]
    for wrong in ({"steps": 0}, {"jump_length": 0}, {"jump_count": 0}):
        with pytest.raises(InpaintError):
            PixelSampling(**wrong)


@pytest.mark.parametrize("sampler", PixelSampler)
@pytest.mark.parametrize("jumps", [1, 3])
def test_kept_pixels_end_as_they_are_and_a_perfect_model_finds_the_rest(sampler: PixelSampler, jumps: int) -> None:
    schedule = NoiseSettings().schedule()
    truth = torch.rand(2, 3, 8, 8) * 1.6 - 0.8
    hole = torch.zeros(2, 1, 8, 8)
    hole[:, :, 2:6, 1:7] = 1
    seen = []

    def perfect(noisy: torch.Tensor, timesteps_B: torch.Tensor) -> torch.Tensor:
        a = schedule.alphas_cumprod_T[timesteps_B].reshape(-1, 1, 1, 1)
        seen.append((noisy, timesteps_B))
        return (noisy - a.sqrt() * truth) / (1 - a).sqrt()

    sampling = PixelSampling(steps=6, sampler=sampler, jump_length=2, jump_count=jumps)
    calls = []
    result = fill(
        perfect,
        schedule,
        truth * (1 - hole),
        hole,
        sampling,
        lambda: torch.randn(2, 3, 8, 8),
        lambda done, total, picture: calls.append((done, total)),
    )
    assert torch.equal(result * (1 - hole), truth * (1 - hole))
    assert torch.allclose(result, truth, atol=1e-2)
    assert calls == [(i + 1, sampling.evaluations) for i in range(sampling.evaluations)]
    assert len(seen) == sampling.evaluations


@pytest.mark.parametrize("sampler", PixelSampler)
@pytest.mark.parametrize("jumps", [1, 3])
def test_the_network_sees_pictures_as_noisy_as_its_timestep(sampler: PixelSampler, jumps: int) -> None:
    """Outside the hole by force, whatever the network says; inside it also after noise was added again."""
    schedule = NoiseSettings().schedule()
    known, hole = torch.full((1, 3, 64, 64), 0.5), torch.zeros(1, 1, 64, 64)
    hole[:, :, :32] = 1
    spread = []

    def model(noisy: torch.Tensor, timesteps_B: torch.Tensor) -> torch.Tensor:
        a = schedule.alphas_cumprod_T[timesteps_B[0]]
        noise = (noisy - a.sqrt() * 0.5) / (1 - a).sqrt()
        spread.extend((part.mean().item(), part.std().item()) for part in (noise[:, :, 32:], noise[:, :, :32]))
        return torch.where(hole > 0, noise, 3.0)

    sampling = PixelSampling(steps=8, sampler=sampler, jump_length=3, jump_count=jumps)
    fill(model, schedule, known, hole, sampling, lambda: torch.randn(1, 3, 64, 64))
    for mean, std in spread:
        assert mean == pytest.approx(0, abs=0.06)
        assert std == pytest.approx(1, abs=0.06)
