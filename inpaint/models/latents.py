"""Between pixels, latents and the U-Net: what painting and its parity with diffusers' inpaint pipeline rest on.

Shapes: B rows; H W pixels, h w latents; C latent channels. `pixels_B3HW` is in [-1, 1]; `hole` is 1 where to paint.
Everything is a function of its arguments, and rows are independent of one another.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inpaint.diffusion.schedule import Schedule, add_noise
from inpaint.models.base import Base
from inpaint.models.prompts import Conditioning, unet_kwargs


@dataclass(frozen=True, eq=False)
class Canvas:
    """One batch before its first step. Latents are float32, whatever the base's precision."""

    noise_BChw: Tensor
    """Initial latents; a 4-channel base's known latents are noised with it, too."""
    hole_B1hw: Tensor
    known_BChw: Tensor
    """Latents of the masked image (9 channels), or of the whole image (4 channels)."""


def encode(base: Base, pixels_B3HW: Tensor, generators: list[torch.Generator]) -> Tensor:
    """A posterior sample of the VAE, scaled; row i draws from `generators[i]` alone (Rombach 2022, appendix G)."""
    posterior = base.vae.encode(pixels_B3HW.to(base.vae.device, base.vae.dtype)).latent_dist
    draws = [torch.randn((1, *posterior.mean.shape[1:]), generator=g, dtype=posterior.mean.dtype) for g in generators]
    noise_BChw = torch.cat(draws).to(posterior.mean.device)
    return ((posterior.mean + posterior.std * noise_BChw) * base.vae.config.scaling_factor).float()


def decode(base: Base, latents_BChw: Tensor) -> Tensor:
    """Latents -> images B 3 H W in [0, 1], float32."""
    scaled_BChw = (latents_BChw / base.vae.config.scaling_factor).to(base.vae.dtype)
    return (base.vae.decode(scaled_BChw).sample.float() / 2 + 0.5).clamp(0, 1)


def shrink_hole(hole_B1HW: Tensor, downsample: int) -> Tensor:
    """The hole at the latents' resolution: nearest, which is the top left pixel of each cell."""
    return hole_B1HW[..., ::downsample, ::downsample]


def prepare(base: Base, pixels_B3HW: Tensor, hole_B1HW: Tensor, generators: list[torch.Generator]) -> Canvas:
    """Draws what the inpaint pipeline of diffusers draws at strength 1, in its order.

    9 channels: the noise, then the posterior of the masked image. 4 channels: the posterior of the image, then the
    noise. Generators are on the CPU, so that a seed means the same on every device.
    """
    size = (pixels_B3HW.shape[2] // base.downsample, pixels_B3HW.shape[3] // base.downsample)
    shape = (1, int(base.vae.config.latent_channels), *size)

    def draw() -> Tensor:
        return torch.cat([torch.randn(shape, generator=g, dtype=base.dtype) for g in generators]).to(base.device)

    if base.in_channels == 9:
        noise_BChw = draw()
        known_BChw = encode(base, pixels_B3HW * (hole_B1HW < 0.5), generators)
    else:
        known_BChw = encode(base, pixels_B3HW, generators)
        noise_BChw = draw()
    hole_B1hw = shrink_hole(hole_B1HW, base.downsample).to(base.device, torch.float32)
    return Canvas(noise_BChw.float(), hole_B1hw, known_BChw)


def keep_known(schedule: Schedule, canvas: Canvas, latents_BChw: Tensor, timesteps_B: Tensor) -> Tensor:
    """For 4-channel bases: outside the hole the known latents, noised to `timesteps_B` (negative: clean)."""
    noised_BChw = add_noise(schedule, canvas.known_BChw, canvas.noise_BChw, timesteps_B.clamp(min=0))
    ended_B111 = (timesteps_B < 0).reshape(-1, 1, 1, 1)
    known_BChw = torch.where(ended_B111, canvas.known_BChw, noised_BChw)
    return (1 - canvas.hole_B1hw) * known_BChw + canvas.hole_B1hw * latents_BChw


def guided(conditioning: Conditioning, negative: Conditioning, rows: list[int]) -> Conditioning:
    """The text half of `predict`: the negative prompts of the guided `rows`, then all prompts.

    `negative` has one entry per guided row.
    """
    assert len(negative) == len(rows)
    embeds_GLD = torch.cat([negative.embeds_BLD, conditioning.embeds_BLD])
    if conditioning.pooled_BP is None or negative.pooled_BP is None:
        return Conditioning(embeds_GLD, None)
    return Conditioning(embeds_GLD, torch.cat([negative.pooled_BP, conditioning.pooled_BP]))


def predict(
    base: Base,
    canvas: Canvas,
    latents_BChw: Tensor,
    timesteps_B: Tensor,
    text: Conditioning,
    rows: list[int],
    scales_B: Tensor,
) -> Tensor:
    """The U-Net's output with classifier-free guidance (Ho 2022, eq. 6), in one call for all rows; float32.

    Args:
        text: from `guided`; one entry per guided row and one per row.
        rows: the guided rows; the others cost one U-Net row instead of two.
        scales_B: guidance scale per row; read for the guided rows only.
    """
    inputs = latents_BChw
    if base.in_channels == 9:
        inputs = torch.cat([latents_BChw, canvas.hole_B1hw, canvas.known_BChw], dim=1)
    height, width = (side * base.downsample for side in latents_BChw.shape[2:])
    output = base.unet(
        torch.cat([inputs[rows], inputs]).to(base.dtype),
        torch.cat([timesteps_B[rows], timesteps_B]),
        **unet_kwargs(text, height, width),
    ).sample.float()
    negative, positive = output[: len(rows)], output[len(rows) :]
    if not rows:
        return positive
    combined = positive.clone()
    combined[rows] = negative + scales_B[rows].reshape(-1, 1, 1, 1) * (positive[rows] - negative)
    return combined
