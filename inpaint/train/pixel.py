"""The objective of a DDPM that is trained from scratch: noise prediction in the hole, on pixels.

Shapes: B samples, H x W pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from inpaint.diffusion import keyed
from inpaint.diffusion.ddpm import NoiseSettings, PixelSampling, fill
from inpaint.diffusion.objective import HoleDiffusion, LossSettings
from inpaint.diffusion.unet import MaskedUNet
from inpaint.paint.ddpm_painter import to_uint8
from inpaint.paint.paste import comparison
from inpaint.train.objective import MicroBatch, ParameterGroup, autocast, by_row, on_device, to_hole, to_pixels
from inpaint.train.settings import Precision


class PixelInpainting(nn.Module):
    """Squared error of the masked U-Net's prediction, in the hole alone: kept pixels have exactly zero gradient.

    A batch's `label` is the name of a sample's class, or empty: no class. All randomness is keyed by (seed, purpose,
    position).
    """

    def __init__(
        self,
        unet: MaskedUNet,
        noise: NoiseSettings,
        *,
        classes: Sequence[str] = (),
        learning_rate: float,
        seed: int,
        loss: LossSettings,
        precision: Precision,
    ) -> None:
        super().__init__()
        self.unet = unet
        self._dropped = by_row(self, seed)
        self.diffusion = HoleDiffusion(noise.schedule(), loss, seed=seed)
        self.labels = {name: label for label, name in enumerate(("", *classes))}
        self.learning_rate = learning_rate
        self.seed = seed
        self.precision = precision

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(self.learning_rate, dict(self.unet.named_parameters()))]

    def forward(self, batch: MicroBatch, *, validating: bool = False) -> Tensor:
        device = self.unet.image_in.weight.device
        positions_B = on_device(batch["position"], device)
        self._dropped[:] = batch["position"].tolist()
        clean_B3HW, hole_B1HW = self._seen(batch)
        noised = self.diffusion.noise(clean_B3HW, positions_B, validating=validating)
        labels_B = self._labels(batch, device)
        with autocast(self.precision, device):
            output_B3HW = self.unet(noised.noisy_BChw, noised.timesteps_B, clean_B3HW, hole_B1HW, labels_B)
        return self.diffusion.loss_of(output_B3HW, noised, hole_B1HW)

    def _seen(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        device = self.unet.image_in.weight.device
        return to_pixels(batch["image"], device), (to_hole(batch["hole"], device) >= 0.5).float()

    def _labels(self, batch: MicroBatch, device: torch.device) -> Tensor:
        return on_device(np.array([self.labels.get(str(name), 0) for name in batch["label"]]), device)

    @torch.no_grad()
    def paint(self, batch: MicroBatch, count: int) -> list[np.ndarray]:
        """Input, hole and filling side by side."""
        some = {name: batch[name][:count] for name in ("image", "hole", "label")}
        known_B3HW, hole_B1HW = self._seen(some)
        labels_B = self._labels(some, known_B3HW.device)
        positions_B = torch.arange(len(known_B3HW), device=known_B3HW.device)

        def predict(noisy_B3HW: Tensor, timesteps_B: Tensor) -> Tensor:
            with autocast(self.precision, known_B3HW.device):
                return self.unet(noisy_B3HW, timesteps_B, known_B3HW, hole_B1HW, labels_B)

        def draw() -> Tensor:  # once: DDIM
            return keyed.normal(self.seed, "validation pictures", positions_B, tuple(known_B3HW.shape[1:]))

        filled = fill(predict, self.diffusion.schedule, known_B3HW, hole_B1HW, PixelSampling(steps=25), draw)
        holes = hole_B1HW[:, 0].bool().cpu().numpy()
        return [comparison(*row) for row in zip(some["image"], holes, to_uint8(filled), strict=True)]
