"""Between pixels and latents: what painting and its parity with diffusers' inpaint pipeline rest on.

Shapes: B rows; H W pixels, h w latents; C latent channels. `pixels_B3HW` is in [-1, 1]; `hole` is 1 where to paint.
Everything is a function of its arguments, and rows are independent of one another.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inpaint.models.base import Base


@dataclass(frozen=True, eq=False)
class StartLatents:
    """One batch before its first step. Latents are float32, whatever the base's precision."""

    noise_BChw: Tensor
    """What the first latents are made from; a 4-channel base's known latents are noised with it, too."""
    hole_B1hw: Tensor
    known_BChw: Tensor
    """Latents of the masked image (9 channels), or of the whole image (4 channels)."""
    image_BChw: Tensor
    """Latents of the whole image; zeros in rows of a 9-channel base that start from noise alone."""


def prepare(
    base: Base,
    pixels_B3HW: Tensor,
    hole_B1HW: Tensor,
    generators: list[torch.Generator],
    from_noise: list[bool],
) -> StartLatents:
    """Draws what the inpaint pipelines of diffusers draw before their first step, in their order, row by row.

    The posterior of the whole image (4 channels, or where a row does not start `from_noise`), the noise, the posterior
    of the masked image. Generators are on the CPU, so that a seed means the same on every device, and stand afterwards
    where a sampler that draws goes on.
    """
    nine = base.info.in_channels == 9
    whole = [row for row, noisy in enumerate(from_noise) if not (nine and noisy)]
    masked_B3HW = pixels_B3HW * (hole_B1HW < 0.5)
    images = [pixels_B3HW[whole], masked_B3HW] if nine else [pixels_B3HW[whole]]
    posterior = base.vae.encode(torch.cat(images).to(base.vae.device, base.vae.dtype)).latent_dist
    means, stds = posterior.mean, posterior.std
    shape, scale = means.shape[1:], base.vae.config.scaling_factor

    def draw(generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        return torch.randn((1, *shape), generator=generator, dtype=dtype)[0].to(base.device)

    def sample(index: int, generator: torch.Generator) -> Tensor:
        return ((means[index] + stds[index] * draw(generator, means.dtype)) * scale).float()

    noise, known, image = [], [], []
    for row, generator in enumerate(generators):
        image.append(sample(whole.index(row), generator) if row in whole else torch.zeros(shape, device=base.device))
        noise.append(draw(generator, base.dtype).float())
        if nine:
            known.append(sample(len(whole) + row, generator))
        else:
            known.append(image[-1])
            # A 4-channel pipeline encodes the masked image for nothing, but draws for it.
            draw(generator, means.dtype)
    hole_B1hw = shrink_hole(hole_B1HW, base.info.downsample).to(base.device, torch.float32)
    return StartLatents(torch.stack(noise), hole_B1hw, torch.stack(known), torch.stack(image))


def decode(base: Base, latents_BChw: Tensor) -> Tensor:
    """Latents -> images B 3 H W in [0, 1], float32."""
    scaled_BChw = (latents_BChw / base.vae.config.scaling_factor).to(base.vae.dtype)
    return (base.vae.decode(scaled_BChw).sample.float() / 2 + 0.5).clamp(0, 1)


def shrink_hole(hole_B1HW: Tensor, downsample: int) -> Tensor:
    """The hole at the latents' resolution: nearest, which is the top left pixel of each cell."""
    return hole_B1HW[..., ::downsample, ::downsample]
