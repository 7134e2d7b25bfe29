"""The training objective of latent inpainting, as pure functions.

Shapes: B samples, C latent channels, h x w latents; a hole is 1 where to paint, 0 where to keep.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from inpaint.diffusion.schedule import NoiseSchedule, snr


def hole_area(hole_B1HW: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Share of each latent's area that lies in the hole, in [0, 1]: the weight of its loss."""
    return F.interpolate(hole_B1HW, size=size_hw, mode="area")


def hole_loss(output_BChw: Tensor, target_BChw: Tensor, area_B1hw: Tensor) -> Tensor:
    """Squared error averaged over the hole's area, per sample (B,). Kept latents have exactly zero gradient."""
    error_B1hw = (output_BChw.float() - target_BChw.float()).square().mean(1, keepdim=True)
    return (error_B1hw * area_B1hw).sum((1, 2, 3)) / area_B1hw.sum((1, 2, 3)).clamp(min=1e-6)


def debiased_weight(schedule: NoiseSchedule, timesteps_B: Tensor) -> Tensor:
    """Loss weight 1 / sqrt(SNR) for noise prediction, 1 / (SNR + 1) for v (Yu et al. 2023, "Debias the training of
    diffusion models"; for v as kohya's trainer does it).

    The error of the predicted noise is smallest where noise is most; unweighted, those timesteps hardly count.
    """
    ratio_B = snr(schedule, timesteps_B)
    return ratio_B.clamp(min=1e-3).rsqrt() if schedule.prediction_type == "epsilon" else 1 / (ratio_B + 1)


def min_snr_weight(schedule: NoiseSchedule, timesteps_B: Tensor, gamma: float) -> Tensor:
    """Loss weight min(SNR, gamma) / SNR for noise prediction, / (SNR + 1) for v (Hang et al. 2023, section 3.4)."""
    ratio_B = snr(schedule, timesteps_B)
    divisor_B = ratio_B if schedule.prediction_type == "epsilon" else ratio_B + 1
    return torch.clamp(ratio_B, max=gamma) / divisor_B
