"""What a diffusion model is trained on, latents or pixels: a keyed timestep, keyed noise, a loss in the hole.

Shapes: B samples, C channels, h x w latents or pixels; a hole is 1 where to paint, 0 where to keep.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from inpaint.diffusion import keyed
from inpaint.diffusion.schedule import NoiseSchedule, add_noise, snr, target
from inpaint.errors import InpaintError


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """How the loss is taken."""

    min_snr_gamma: float | None = None
    """Weigh timesteps by min(SNR, gamma) / SNR (5 is usual); unset: all alike."""
    debiased: bool = False
    """Weigh timesteps so that the noisiest ones, which decide what is painted, count like the others: by 1 / sqrt(SNR)
    for noise prediction, by 1 / (SNR + 1), which is the clean sample's own error, for v."""
    timestep_shift: float = 1.0
    """Draw noisier timesteps more often: a share s of the schedule becomes shift * s / (1 + (shift - 1) * s); with 3
    the noisiest third is drawn in 60 % of the samples, with 1 all alike."""
    noise_offset: float = 0.0
    """A per-channel constant of this scale is added to the noise, so that brightness is learned (0.05 is usual)."""

    kept_weight: float = 0.0
    """What is kept counts this much beside the hole, each averaged by itself; for bases of 9 channels, whose painting
    goes on from what they made of it, too, step by step. 0 when a trained base learns a style; 1 for a new one."""

    def __post_init__(self) -> None:
        if self.timestep_shift <= 0:
            raise InpaintError(f"timestep_shift {self.timestep_shift}: give more than 0; 1 draws all timesteps alike")
        if self.kept_weight < 0:
            raise InpaintError(f"kept_weight {self.kept_weight}: give 0 or more")

    def check_kept(self, *, denoised: bool) -> None:
        """Raises InpaintError for a weight of what is kept where a model does not paint on from it."""
        if self.kept_weight and not denoised:
            raise InpaintError(
                f"kept_weight {self.kept_weight}: for bases of 9 channels; here what is kept is put back at every step"
            )


@dataclass(frozen=True, eq=False)
class Noised:
    """Samples with the noise of their timesteps; float32."""

    clean_BChw: Tensor
    noise_BChw: Tensor
    timesteps_B: Tensor
    noisy_BChw: Tensor


@dataclass(frozen=True, eq=False)
class HoleDiffusion:
    """Noises samples and takes their loss. All randomness is a function of (seed, position)."""

    schedule: NoiseSchedule
    loss: LossSettings
    seed: int

    def noise(self, clean_BChw: Tensor, positions_B: Tensor, *, validating: bool = False) -> Noised:
        """Args: validating: draw a fixed set's own noise.

        Timesteps are spread evenly over any run of positions: a step's gradient then varies less than with independent
        ones (Kingma et al. 2021, "Variational diffusion models", appendix I.1).
        """
        shape, purpose = tuple(clean_BChw.shape[1:]), "validation " if validating else ""
        noise_BChw = keyed.normal(self.seed, f"{purpose}noise", positions_B, shape)
        if self.loss.noise_offset:
            offset_BC11 = keyed.normal(self.seed, f"{purpose}noise offset", positions_B, (shape[0], 1, 1))
            noise_BChw = noise_BChw + self.loss.noise_offset * offset_BC11
        share_B = keyed.spread(self.seed, f"{purpose}timestep", positions_B)
        if (shift := self.loss.timestep_shift) != 1:  # Esser et al. 2024, "Scaling rectified flow", equation 23
            share_B = shift * share_B / (1 + (shift - 1) * share_B)
        timesteps_B = (share_B * self.schedule.train_timesteps).long()
        noisy_BChw = add_noise(self.schedule, clean_BChw, noise_BChw, timesteps_B)
        return Noised(clean_BChw, noise_BChw, timesteps_B, noisy_BChw)

    def loss_of(
        self, output_BChw: Tensor, noised: Noised, hole_B1hw: Tensor, counted_B1hw: Tensor | None = None
    ) -> Tensor:
        """The weighted loss of each sample (B,), float32, of what the model says at `noised`: in the hole, or the part
        of it that is `counted`, and outside it as the settings weigh what is kept."""
        goal_BChw = target(self.schedule, noised.clean_BChw, noised.noise_BChw, noised.timesteps_B)
        loss_B = hole_loss(output_BChw, goal_BChw, hole_B1hw if counted_B1hw is None else counted_B1hw)
        if self.loss.kept_weight:
            loss_B = loss_B + self.loss.kept_weight * hole_loss(output_BChw, goal_BChw, 1 - hole_B1hw)
        return loss_B * timestep_weight(self.schedule, noised.timesteps_B, self.loss)


def hole_area(hole_B1HW: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Share of each latent's area that lies in the hole, in [0, 1]: the weight of its loss."""
    return F.interpolate(hole_B1HW, size=size_hw, mode="area")


def hole_loss(output_BChw: Tensor, target_BChw: Tensor, area_B1hw: Tensor) -> Tensor:
    """Squared error averaged over the hole's area, per sample (B,). Kept latents have exactly zero gradient."""
    error_B1hw = (output_BChw.float() - target_BChw.float()).square().mean(1, keepdim=True)
    return (error_B1hw * area_B1hw).sum((1, 2, 3)) / area_B1hw.sum((1, 2, 3)).clamp(min=1e-6)


def timestep_weight(schedule: NoiseSchedule, timesteps_B: Tensor, loss: LossSettings) -> Tensor:
    """Loss weight of each row: the product of what `loss` asks for, 1 where that is nothing.

    Min-SNR (Hang et al. 2023, section 3.4): min(SNR, gamma) / SNR for noise prediction, / (SNR + 1) for v. Debiased (Yu
    et al. 2023, "Debias the training of diffusion models"; for v as kohya's trainer does it): 1 / sqrt(SNR), for v
    1 / (SNR + 1); the error of predicted noise is smallest where noise is most, and would hardly count.
    """
    snr_B, of_noise = snr(schedule, timesteps_B), schedule.prediction_type == "epsilon"
    weight_B = torch.ones_like(snr_B)
    if loss.min_snr_gamma is not None:
        weight_B = weight_B * snr_B.clamp(max=loss.min_snr_gamma) / (snr_B if of_noise else snr_B + 1)
    if loss.debiased:
        weight_B = weight_B * (snr_B.clamp(min=1e-3).rsqrt() if of_noise else 1 / (snr_B + 1))
    return weight_B
