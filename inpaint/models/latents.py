"""The one place between pixels and latents, for training and painting.

Shapes: B rows; H W pixels, h w latents; C latent channels. `pixels_B3HW` is in [-1, 1]; `hole` is 1 where to paint.
Everything is a function of its arguments, and rows are independent of one another.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inpaint.models.base import Base


@dataclass(frozen=True, eq=False)
class Posterior:
    """What the VAE says of images: a normal distribution of latents, scaled as the U-Net expects them; float32."""

    mean_BChw: Tensor
    std_BChw: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """C h w."""
        return tuple(self.mean_BChw.shape[1:])

    def __getitem__(self, rows: slice) -> "Posterior":
        return Posterior(self.mean_BChw[rows], self.std_BChw[rows])

    def sample(self, noise_BChw: Tensor) -> Tensor:
        """A sample for each row, from standard normal noise."""
        return self.mean_BChw + self.std_BChw * noise_BChw


@torch.no_grad()
def encode(base: Base, pixels_B3HW: Tensor) -> Posterior:
    """The posterior of images, computed in the type that the VAE was loaded in, whatever is autocast around it.

    Images and masked images of a 9-channel base are best encoded in one call.
    """
    vae = base.vae
    with torch.autocast(vae.encoder.conv_in.weight.device.type, enabled=False):
        posterior = vae.encode(pixels_B3HW.to(vae.encoder.conv_in.weight)).latent_dist
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
    return Posterior((posterior.mean.float() - shift) * scale, posterior.std.float() * scale)


def decode(base: Base, latents_BChw: Tensor) -> Tensor:
    """Latents -> images B 3 H W in [0, 1], float32; computed as `encode` is."""
    vae = base.vae
    unscaled_BChw = latents_BChw / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    with torch.autocast(vae.decoder.conv_in.weight.device.type, enabled=False):
        pixels_B3HW = vae.decode(unscaled_BChw.to(vae.decoder.conv_in.weight)).sample
    return (pixels_B3HW.float() / 2 + 0.5).clamp(0, 1)


def masked(pixels_B3HW: Tensor, hole_B1HW: Tensor) -> Tensor:
    """The image that a 9-channel base is shown: grey where the hole is at least one half."""
    return pixels_B3HW * (hole_B1HW < 0.5)


def shrink_hole(hole_B1HW: Tensor, downsample: int) -> Tensor:
    """The hole at the latents' resolution, 0 or 1, float32: the top left pixel of each cell, as in diffusers."""
    return (hole_B1HW[..., ::downsample, ::downsample] >= 0.5).float()


def unet_input(latents_BChw: Tensor, hole_B1hw: Tensor, known_BChw: Tensor | None) -> Tensor:
    """What the U-Net is shown: latents alone (4 channels), or beside them the hole and the masked image's latents."""
    return latents_BChw if known_BChw is None else torch.cat([latents_BChw, hole_B1hw, known_BChw], dim=1)


@dataclass(frozen=True, eq=False)
class StartLatents:
    """One batch before its first step of painting. Latents are float32, whatever the base's precision."""

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
    images = [pixels_B3HW[whole], masked(pixels_B3HW, hole_B1HW)] if nine else [pixels_B3HW]
    posterior = encode(base, torch.cat(images))
    means, stds = posterior.mean_BChw, posterior.std_BChw
    vae_dtype = base.vae.encoder.conv_in.weight.dtype

    def draw(generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        noise = torch.randn((1, *posterior.shape), generator=generator, dtype=dtype)[0]
        return noise.to(means.device, torch.float32)

    noise, known, image = [], [], []
    for row, generator in enumerate(generators):
        first = torch.zeros_like(means[0])
        if row in whole:
            first = means[whole.index(row)] + stds[whole.index(row)] * draw(generator, vae_dtype)
        image.append(first)
        noise.append(draw(generator, base.dtype))
        # A 4-channel pipeline encodes the masked image for nothing, but draws for it.
        drawn = draw(generator, vae_dtype)
        known.append(means[len(whole) + row] + stds[len(whole) + row] * drawn if nine else first)
    hole_B1hw = shrink_hole(hole_B1HW, base.info.downsample).to(means.device)
    return StartLatents(torch.stack(noise), hole_B1hw, torch.stack(known), torch.stack(image))
