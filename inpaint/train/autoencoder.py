"""The objective of a VAE: how the toy base's autoencoder is trained, through the same loop."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from inpaint import randomness
from inpaint.train.objective import Batch, ParameterGroup, to_pixels


class Reconstruction(nn.Module):
    """Absolute, squared and gradient error of the reconstruction, and a small KL term (Kingma 2013; Rombach 2022)."""

    def __init__(
        self, vae: AutoencoderKL, *, learning_rate: float, seed: int, kl_weight: float, gradient_weight: float
    ) -> None:
        super().__init__()
        self.vae = vae
        self.seed = seed
        self.learning_rate = learning_rate
        self.kl_weight = kl_weight
        self.gradient_weight = gradient_weight

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("vae", self.learning_rate, dict(self.vae.named_parameters()))]

    def forward(self, batch: Batch) -> Tensor:
        image_B3HW = to_pixels(batch["image"], self.vae.device)
        posterior = self.vae.encode(image_B3HW).latent_dist
        positions = np.asarray(batch["position"])
        noise = torch.from_numpy(randomness.normal(self.seed, "vae", positions, tuple(posterior.mean.shape[1:])))
        output_B3HW = self.vae.decode(posterior.mean + posterior.std * noise.to(image_B3HW.device)).sample
        error_B3HW = output_B3HW - image_B3HW
        loss_B = error_B3HW.abs().mean((1, 2, 3)) + 2 * error_B3HW.square().mean((1, 2, 3))
        for axis in (2, 3):
            loss_B = loss_B + self.gradient_weight * error_B3HW.diff(dim=axis).abs().mean((1, 2, 3))
        return loss_B + self.kl_weight * posterior.kl()
