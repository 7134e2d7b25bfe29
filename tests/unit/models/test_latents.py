"""Between pixels and latents: scale, shift and precision; painting shows the U-Net what training shows it."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from inpaint.diffusion.schedule import add_noise, schedule_of
from inpaint.models import latents
from inpaint.models.base import Base, load_base
from inpaint.models.prompts import encode_prompts
from inpaint.paint.crop import working_image
from inpaint.paint.denoise import Batch, start_rows
from inpaint.paint.request import PaintRequest, SamplingSettings
from tests.tiny import SIZE, tiny_sd


@pytest.fixture(scope="module")
def nine(sd_folder: Path) -> Base:
    return load_base(sd_folder)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(tiny_sd(tmp_path_factory.mktemp("four")))


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_latents_are_shifted_and_scaled_and_back(nine, pixels):
    plain = nine.vae.encode(pixels).latent_dist
    base = replace(nine, vae=copy.deepcopy(nine.vae))
    base.vae.register_to_config(shift_factor=0.25)
    posterior = latents.encode(base, pixels)
    torch.testing.assert_close(posterior.mean_BChw, (plain.mean - 0.25) * nine.vae.config.scaling_factor)
    torch.testing.assert_close(posterior.std_BChw, plain.std * nine.vae.config.scaling_factor)
    noise = torch.randn(posterior.mean_BChw.shape)
    torch.testing.assert_close(posterior[1:].sample(noise[1:]), posterior.sample(noise)[1:])
    decoded = latents.decode(base, posterior.mean_BChw)
    expected = (nine.vae.decode(plain.mean).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=1e-5)


def test_the_vae_computes_in_its_own_type_under_autocast(nine, pixels):
    expected = latents.encode(nine, pixels)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = latents.encode(nine, pixels)
        decoded = latents.decode(nine, posterior.mean_BChw)
    assert torch.equal(posterior.mean_BChw, expected.mean_BChw) and torch.equal(posterior.std_BChw, expected.std_BChw)
    assert torch.equal(decoded, latents.decode(nine, expected.mean_BChw))
    assert not posterior.mean_BChw.requires_grad


def test_the_hole_shrinks_as_diffusers_resizes_it():
    hole = torch.rand(2, 1, 24, 32, generator=torch.Generator().manual_seed(1))
    for downsample in (1, 2, 4, 8):
        size = (24 // downsample, 32 // downsample)
        expected = F.interpolate((hole >= 0.5).float(), size=size)
        assert torch.equal(latents.shrink_hole(hole, downsample), expected)


def test_the_masked_image_is_grey_in_the_hole_and_whole_elsewhere(pixels):
    hole = torch.zeros(3, 1, SIZE, SIZE)
    hole[:, :, :4], hole[:, :, 4:8], hole[:, :, 8:12] = 1.0, 0.5, 0.4
    found = latents.masked(pixels, hole)
    assert not found[:, :, :8].any() and torch.equal(found[:, :, 8:], pixels[:, :, 8:])


def request(seed: int) -> PaintRequest:
    rng = np.random.default_rng(seed)
    hole = np.zeros((SIZE, SIZE), dtype=bool)
    hole[4 : 20 + seed, 6:30] = True
    image = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    sampling = SamplingSettings(steps=4, guidance_scale=1.0, strength=0.75)
    return PaintRequest(image=image, hole=hole, prompt="red", seed=seed, sampling=sampling)


@pytest.mark.parametrize("channels", [4, 9])
def test_painting_shows_the_unet_what_training_shows_it(nine, four, channels):
    """Noisy latents, at every step of the kept region's own image noised to t; and what stands beside them."""
    base = nine if channels == 9 else four
    schedule = schedule_of(base.scheduler)
    requests = [request(0), request(1)]
    with torch.no_grad():
        images = [working_image(base.info, r) for r in requests]
        text = encode_prompts(base, ["red"])
        rows = start_rows(base, schedule, requests, images, [text, text], [None, None])
        batch = Batch(base, schedule, rows)
        shown = []

        def unet(inputs: torch.Tensor, times: torch.Tensor, **kwargs: object) -> object:
            shown.append((inputs, times))
            return base.unet(inputs, times, **kwargs)

        while rows[0].left:
            batch.advance(unet)
    pixels = torch.stack([torch.from_numpy(r.image) for r in requests]).permute(0, 3, 1, 2) / 127.5 - 1
    hole = torch.stack([torch.from_numpy(r.hole) for r in requests])[:, None].float()
    hole_B1hw = latents.shrink_hole(hole, base.info.downsample)
    posterior = latents.encode(base, torch.cat([pixels, latents.masked(pixels, hole)]))
    noise = torch.stack([row.noise_Chw for row in rows])
    known = torch.stack([row.known_Chw for row in rows])
    expected = posterior[:2] if channels == 4 else posterior[2:]
    assert ((known - expected.mean_BChw).abs() <= 6 * expected.std_BChw + 1e-5).all()
    assert len(shown) == 3
    for inputs, times in shown:
        if channels == 9:
            torch.testing.assert_close(inputs, latents.unet_input(inputs[:, :4], hole_B1hw, known))
        else:
            trained = latents.unet_input(add_noise(schedule, known, noise, times.long()), hole_B1hw, None)
            kept = (hole_B1hw == 0).expand_as(trained)
            torch.testing.assert_close(inputs[kept], trained[kept], atol=1e-4, rtol=1e-4)
