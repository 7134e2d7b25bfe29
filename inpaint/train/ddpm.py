"""The objective of a DDPM that is trained from scratch: noise prediction in the hole, on pixels.

Shapes: B samples, H x W pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from inpaint import randomness
from inpaint.diffusion import objective, schedule
from inpaint.diffusion.ddpm import NoiseSettings
from inpaint.diffusion.unet import MaskedUNet
from inpaint.train.objective import Batch, ParameterGroup, autocast, to_hole, to_pixels
from inpaint.train.settings import Precision


class HoleDiffusion(nn.Module):
    """Squared error of the masked U-Net's prediction, in the hole alone: kept pixels have exactly zero gradient.

    A batch's `label` is the name of a sample's class, or empty: no class. All randomness is keyed by (seed, purpose,
    position), but dropout, which is torch's.
    """

    def __init__(
        self,
        unet: MaskedUNet,
        noise: NoiseSettings,
        *,
        classes: Sequence[str] = (),
        learning_rate: float,
        seed: int,
        min_snr_gamma: float | None,
        precision: Precision,
        debiased: bool = False,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.schedule = noise.schedule()
        self.labels = {name: label for label, name in enumerate(("", *classes))}
        self.learning_rate = learning_rate
        self.seed = seed
        self.min_snr_gamma = min_snr_gamma
        self.debiased = debiased
        self.precision = precision

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("unet", self.learning_rate, dict(self.unet.named_parameters()))]

    def forward(self, batch: Batch) -> Tensor:
        device = self.unet.image_in.weight.device
        positions = np.asarray(batch["position"])
        # Dropout is keyed by the batch: the same after a resume, at an equal world size.
        torch.manual_seed(int(randomness.generator(self.seed, "dropout", int(positions[0])).integers(2**62)))
        clean_B3HW = to_pixels(batch["image"], device)
        hole_B1HW = (to_hole(batch["hole"], device) >= 0.5).float()
        noise = randomness.normal(self.seed, "noise", positions, tuple(clean_B3HW.shape[1:]))
        noise_B3HW = torch.from_numpy(noise).to(device)
        share_B = randomness.uniform(self.seed, "timestep", positions)
        timesteps_B = torch.from_numpy((share_B * self.schedule.train_timesteps).astype(np.int64)).to(device)
        labels_B = torch.tensor([self.labels.get(str(name), 0) for name in batch["label"]], device=device)
        noisy_B3HW = schedule.add_noise(self.schedule, clean_B3HW, noise_B3HW, timesteps_B)
        with autocast(self.precision, device):
            output_B3HW = self.unet(noisy_B3HW, timesteps_B, clean_B3HW, hole_B1HW, labels_B)
        target_B3HW = schedule.target(self.schedule, clean_B3HW, noise_B3HW, timesteps_B)
        loss_B = objective.hole_loss(output_B3HW, target_B3HW, hole_B1HW)
        if self.min_snr_gamma is not None:
            loss_B = loss_B * objective.min_snr_weight(self.schedule, timesteps_B, self.min_snr_gamma)
        if self.debiased:
            loss_B = loss_B * objective.debiased_weight(self.schedule, timesteps_B)
        return loss_B
