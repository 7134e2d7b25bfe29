"""The objective of every workload on a latent base: noise prediction in the hole (docs/architecture.md).

Shapes: B samples, H x W pixels, h x w latents, C latent channels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from inpaint import randomness
from inpaint.diffusion import objective, schedule
from inpaint.models.base import Base
from inpaint.models.latents import encode, masked, shrink_hole, unet_input
from inpaint.models.prompts import encode_prompts, unet_kwargs
from inpaint.train.objective import Batch, ParameterGroup, autocast, to_hole, to_pixels
from inpaint.train.settings import Precision


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """How the loss is taken."""

    min_snr_gamma: float | None = None
    """Weigh timesteps by min(SNR, gamma) / SNR (5 is usual); unset: all alike."""
    debiased: bool = False
    """Weigh timesteps by 1 / sqrt(SNR): the noisiest ones, which decide what is painted, then count like the others."""
    noise_offset: float = 0.0
    """A per-channel constant of this scale is added to the noise, so that brightness is learned (0.05 is usual)."""


class LatentInpainting(nn.Module):
    """Predicts the noise of a noisy latent; 9-channel bases are shown hole and masked image beside it. What the U-Net
    sees is what painting shows it. All randomness is keyed by (seed, purpose, position)."""

    def __init__(
        self, base: Base, groups: list[ParameterGroup], *, seed: int, loss: LossSettings, precision: Precision
    ) -> None:
        super().__init__()
        self.base = base
        base.vae.to(memory_format=torch.channels_last)
        self.seed = seed
        self.loss = loss
        self.precision = precision
        self.schedule = schedule.schedule_of(base.scheduler)
        # The VAE is not registered: DeepSpeed would shard it, and cast SDXL's, which overflows in fp16.
        self.unet = base.unet
        self.text_encoders = nn.ModuleList(base.text_encoders)
        self._groups = groups

    def groups(self) -> list[ParameterGroup]:
        return self._groups

    def forward(self, batch: Batch) -> Tensor:
        # Not `base.device` and `vae.dtype`: diffusers finds those by walking through all modules, 4 % of a small step.
        device = self.unet.conv_in.weight.device
        positions = np.asarray(batch["position"])
        # LoRA's dropout is torch's: keyed by the batch, it is the same after a resume (at an equal world size).
        torch.manual_seed(int(randomness.generator(self.seed, "dropout", int(positions[0])).integers(2**62)))
        image_B3HW = to_pixels(batch["image"], device)
        hole_B1HW = to_hole(batch["hole"], device)
        with autocast(self.precision, device):
            clean_BChw, masked_BChw = self._encoded(image_B3HW, hole_B1HW, batch, positions)
            size_hw = (clean_BChw.shape[2], clean_BChw.shape[3])
            noise_BChw = self._noise(positions, clean_BChw)
            timesteps_B = self._timesteps(positions, device)
            noisy_BChw = schedule.add_noise(self.schedule, clean_BChw, noise_BChw, timesteps_B)
            hole_B1hw = shrink_hole(hole_B1HW, self.base.info.downsample)
            inputs_BChw = unet_input(noisy_BChw, hole_B1hw, masked_BChw).to(self.unet.conv_in.weight.dtype)
            conditioning = encode_prompts(self.base, [str(p) for p in batch["prompt"]])
            kwargs = unet_kwargs(conditioning, *image_B3HW.shape[-2:])
            # The weights may not be: ZeRO keeps trained ones in flat buffers.
            inputs_BChw = inputs_BChw.contiguous(memory_format=torch.channels_last)
            output_BChw = self.unet(inputs_BChw, timesteps_B, **kwargs).sample
        target_BChw = schedule.target(self.schedule, clean_BChw, noise_BChw, timesteps_B)
        area_B1hw = objective.hole_area(hole_B1HW, size_hw)
        loss_B = objective.hole_loss(output_BChw, target_BChw, area_B1hw)
        if self.loss.min_snr_gamma is not None:
            loss_B = loss_B * objective.min_snr_weight(self.schedule, timesteps_B, self.loss.min_snr_gamma)
        if self.loss.debiased:
            loss_B = loss_B * objective.debiased_weight(self.schedule, timesteps_B)
        return loss_B

    def _encoded(
        self, image_B3HW: Tensor, hole_B1HW: Tensor, batch: Batch, positions: np.ndarray
    ) -> tuple[Tensor, Tensor | None]:
        """Latents of the images, and for 9 channels of the masked ones."""

        def noise(purpose: str, shape: tuple[int, ...]) -> Tensor:
            return torch.from_numpy(randomness.normal(self.seed, purpose, positions, shape)).to(image_B3HW.device)

        if self.base.info.in_channels == 4:
            posterior = encode(self.base, image_B3HW)
            return posterior.sample(noise("vae", posterior.shape)), None
        input_B3HW = to_pixels(batch["input"], image_B3HW.device) if "input" in batch else image_B3HW
        both, count = encode(self.base, torch.cat([image_B3HW, masked(input_B3HW, hole_B1HW)])), len(image_B3HW)
        image, known = both[:count], both[count:]
        return image.sample(noise("vae", both.shape)), known.sample(noise("masked vae", both.shape))

    def _noise(self, positions: np.ndarray, like_BChw: Tensor) -> Tensor:
        noise = randomness.normal(self.seed, "noise", positions, tuple(like_BChw.shape[1:]))
        if self.loss.noise_offset:
            offset = randomness.normal(self.seed, "noise offset", positions, (like_BChw.shape[1], 1, 1))
            noise = noise + self.loss.noise_offset * offset
        return torch.from_numpy(noise).to(like_BChw.device)

    def _timesteps(self, positions: np.ndarray, device: torch.device) -> Tensor:
        share_B = randomness.uniform(self.seed, "timestep", positions)
        return torch.from_numpy((share_B * self.schedule.train_timesteps).astype(np.int64)).to(device)
