"""The one place between pixels and latents, for training and painting.

Shapes: B rows; H W pixels, h w latents; C latent channels. `pixels_B3HW` is in [-1, 1]; `hole` is 1 where to paint.
Everything is a function of its arguments, and rows are independent of one another.
"""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
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

    def __getitem__(self, rows: int | slice) -> "Posterior":
        return Posterior(self.mean_BChw[rows], self.std_BChw[rows])

    def sample(self, noise_BChw: Tensor) -> Tensor:
        """A sample of each row, from standard normal noise."""
        return self.mean_BChw + self.std_BChw * noise_BChw


@torch.no_grad()
def encode(base: Base, pixels_B3HW: Tensor) -> Posterior:
    """The posterior of images, computed in the type that the VAE was loaded in, whatever is autocast around it.

    Images and masked images of a 9-channel base are best encoded in one call.
    """
    return _scaled(base.vae, _encoded(base.vae, pixels_B3HW))


@torch.no_grad()
def moments(vae: AutoencoderKL, pixels_B3HW: Tensor) -> Tensor:
    """What `encode` computes before anything is made of it: mean and log variance, unscaled, B 2C h w."""
    return _encoded(vae, pixels_B3HW).parameters


def posterior_of(vae: AutoencoderKL, moments_BMhw: Tensor) -> Posterior:
    """What `encode` makes of them, in the type that they were computed in."""
    with torch.autocast(moments_BMhw.device.type, enabled=False):
        return _scaled(vae, DiagonalGaussianDistribution(moments_BMhw))


def _encoded(vae: AutoencoderKL, pixels_B3HW: Tensor) -> DiagonalGaussianDistribution:
    with torch.autocast(vae.encoder.conv_in.weight.device.type, enabled=False):
        return vae.encode(pixels_B3HW.to(vae.encoder.conv_in.weight)).latent_dist


def _scaled(vae: AutoencoderKL, found: DiagonalGaussianDistribution) -> Posterior:
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
    return Posterior((found.mean.float() - shift) * scale, found.std.float() * scale)


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
