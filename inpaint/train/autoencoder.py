"""The objective of a VAE: how the toy base's autoencoder is trained, through the same loop."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from inpaint.diffusion import keyed
from inpaint.train.objective import MicroBatch, ParameterGroup, on_device, to_pixels


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

    def forward(self, batch: MicroBatch, *, validating: bool = False) -> Tensor:
        image_B3HW = to_pixels(batch["image"], self.vae.device)
        posterior = self.vae.encode(image_B3HW).latent_dist
        positions_B = on_device(batch["position"], self.vae.device)
        purpose = "validation vae" if validating else "vae"
        noise_BChw = keyed.normal(self.seed, purpose, positions_B, tuple(posterior.mean.shape[1:]))
        output_B3HW = self.vae.decode(posterior.mean + posterior.std * noise_BChw).sample
        error_B3HW = output_B3HW - image_B3HW
        loss_B = error_B3HW.abs().mean((1, 2, 3)) + 2 * error_B3HW.square().mean((1, 2, 3))
        for axis in (2, 3):
            loss_B = loss_B + self.gradient_weight * error_B3HW.diff(dim=axis).abs().mean((1, 2, 3))
        return loss_B + self.kl_weight * posterior.kl()

    @torch.no_grad()
    def paint(self, batch: MicroBatch, count: int) -> list[np.ndarray]:
        """Input and reconstruction side by side."""
        image_B3HW = to_pixels(batch["image"][:count], self.vae.device)
        output_B3HW = self.vae.decode(self.vae.encode(image_B3HW).latent_dist.mean).sample
        both = torch.cat([image_B3HW, output_B3HW], dim=3).add(1).mul(127.5).round().clamp(0, 255).byte()
        return list(both.permute(0, 2, 3, 1).cpu().numpy())
