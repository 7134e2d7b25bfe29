"""Schedules and steps of the DDPM against closed forms and diffusers' schedulers; RePaint's plan; known pixels."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from inpaint.diffusion.ddpm import Noise, NoiseSettings, ddim_step, ddpm_step, renoise
from inpaint.diffusion.repaint import PixelSampler, PixelSampling, fill
from inpaint.errors import InpaintError

BETAS = {Noise.LINEAR: "linear", Noise.COSINE: "squaredcos_cap_v2"}
CASES = list(itertools.product(Noise, ("epsilon", "v_prediction")))


def config(noise: Noise, prediction: str) -> dict:
    betas = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": BETAS[noise]}
    return {**betas, "prediction_type": prediction, "clip_sample": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize(("noise", "prediction"), CASES)
def test_a_ddim_run_is_diffusers(noise: Noise, prediction: str) -> None:
    theirs = DDIMScheduler(**config(noise, prediction))
    theirs.set_timesteps(20)
    schedule = NoiseSettings(noise=noise, prediction_type=prediction).schedule()
    assert torch.allclose(schedule.alphas_cumprod_T, theirs.alphas_cumprod, atol=1e-6)
    ours = expected = torch.randn(2, 3, 4, 4)
    visited = theirs.timesteps.tolist()
    for t, s in zip(visited, [*visited[1:], -1], strict=True):
        output = torch.randn(2, 3, 4, 4)
        ours = ddim_step(schedule, output, ours, torch.full((2,), t), torch.full((2,), s))
        expected = theirs.step(output, t, expected).prev_sample
        assert torch.allclose(ours, expected, atol=2e-4)


@pytest.mark.parametrize(("noise", "prediction"), CASES)
def test_a_ddpm_step_is_diffusers(noise: Noise, prediction: str) -> None:
    theirs = DDPMScheduler(**config(noise, prediction), variance_type="fixed_small")
    theirs.set_timesteps(50)
    schedule = NoiseSettings(noise=noise, prediction_type=prediction).schedule()
    noisy, output = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    visited = theirs.timesteps.tolist()
    for t, s in zip(visited, [*visited[1:], -1], strict=True):
        drawn = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(t))
        expected = theirs.step(output, t, noisy, generator=torch.Generator().manual_seed(t)).prev_sample
        ours = ddpm_step(schedule, output, noisy, torch.full((2,), t), torch.full((2,), s), drawn)
        assert torch.allclose(ours, expected, atol=2e-4), t


def test_linear_noise_in_closed_form() -> None:
    alphas = NoiseSettings().schedule().alphas_cumprod_T
    expected = 1.0
    for t in range(3):
        expected *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        assert alphas[t].item() == pytest.approx(expected, rel=1e-6)
    assert alphas[-1].item() == pytest.approx(4.0358e-5, rel=1e-3)


def test_noise_added_in_two_parts_has_the_variance_of_one() -> None:
    schedule = NoiseSettings().schedule()
    early, late = torch.tensor([100]), torch.tensor([600])
    generator = torch.Generator().manual_seed(0)
    a = schedule.alphas_cumprod_T
    x_100 = a[100].sqrt() * 0.5 + (1 - a[100]).sqrt() * torch.randn(1, 200_000, generator=generator)
    x_600 = renoise(schedule, x_100, early, late, torch.randn(1, 200_000, generator=generator))
    assert x_600.mean().item() == pytest.approx(a[600].sqrt().item() * 0.5, abs=0.01)
    assert x_600.var().item() == pytest.approx((1 - a[600]).item(), abs=0.01)


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


def test_the_network_sees_known_pixels_noised_to_its_timestep() -> None:
    """Enforced at each step: outside the hole x_t is q(x_t | known), whatever the network says."""
    schedule = NoiseSettings().schedule()
    known, hole = torch.full((1, 3, 64, 64), 0.5), torch.zeros(1, 1, 64, 64)
    hole[:, :, :32] = 1
    spread = []

    def wild(noisy: torch.Tensor, timesteps_B: torch.Tensor) -> torch.Tensor:
        a = schedule.alphas_cumprod_T[timesteps_B[0]]
        kept = (noisy[:, :, 32:] - a.sqrt() * 0.5) / (1 - a).sqrt()
        spread.append((kept.mean().item(), kept.std().item()))
        return torch.full_like(noisy, 3.0)

    fill(wild, schedule, known, hole, PixelSampling(steps=8), lambda: torch.randn(1, 3, 64, 64))
    for mean, std in spread:
        assert mean == pytest.approx(0, abs=0.06)
        assert std == pytest.approx(1, abs=0.06)
