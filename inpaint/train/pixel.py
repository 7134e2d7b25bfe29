"""The objective of a DDPM that is trained from scratch: noise prediction in the hole, on pixels.

Shapes: B samples, H x W pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from inpaint.data.decode import PAINT
from inpaint.device import on_device
from inpaint.diffusion.ddpm import NoiseSettings, PixelSampling
from inpaint.diffusion.objective import HoleDiffusion, LossSettings
from inpaint.diffusion.unet import MaskedUNet
from inpaint.evaluate.metrics import hole_figures
from inpaint.paint.ddpm_painter import paint_batch
from inpaint.paint.paste import comparison
from inpaint.paint.request import DdpmRequest
from inpaint.train.objective import MicroBatch, PaintedSample, ParameterGroup, autocast, by_row, to_hole, to_pixels
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
        self.precision = precision

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(self.learning_rate, dict(self.unet.named_parameters()))]

    def forward(self, batch: MicroBatch, *, validating: bool = False) -> Tensor:
        device = self.unet.image_in.weight.device
        positions_B = on_device(batch["position"], device)
        self._dropped[:] = batch["position"].tolist()
        clean_B3HW, hole_B1HW = to_pixels(batch["image"], device), (to_hole(batch["hole"], device) >= 0.5).float()
        noised = self.diffusion.noise(clean_B3HW, positions_B, validating=validating)
        labels_B = self._labels(batch, device)
        with autocast(self.precision, device):
            output_B3HW = self.unet(noised.noisy_BChw, noised.timesteps_B, clean_B3HW, hole_B1HW, labels_B)
        return self.diffusion.loss_of(output_B3HW, noised, hole_B1HW)

    def _labels(self, batch: MicroBatch, device: torch.device) -> Tensor:
        return on_device(np.array([self.labels[str(name)] for name in batch["label"]]), device)

    def paint(self, batch: MicroBatch, count: int) -> list[PaintedSample]:
        """Input, hole and filling side by side, and how near it is to the truth."""
        images, holes, sampling = batch["image"][:count], batch["hole"][:count] >= PAINT, PixelSampling(steps=25)
        requests = [
            DdpmRequest(image=image, hole=hole, seed=number, sampling=sampling)
            for number, (image, hole) in enumerate(zip(images, holes, strict=True))
        ]
        labels_B = self._labels(batch, self.unet.image_in.weight.device)[:count]
        with autocast(self.precision, labels_B.device):
            filled = paint_batch(self.unet, self.diffusion.schedule, requests, labels_B, holes.shape[1:])
        return [
            PaintedSample(comparison(r.image, r.hole, picture), hole_figures(picture, r.image, r.hole))
            for r, picture in zip(requests, filled, strict=True)
        ]
