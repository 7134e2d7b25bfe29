"""The objective of a ControlNet: it learns to tell a frozen base what a picture of edges or depth shows.

Shapes: B samples, H x W pixels, h x w latents, C latent channels.
"""

from typing import Any

import numpy as np
from diffusers import ControlNetModel

from inpaint.device import on_device
from inpaint.diffusion.objective import Noised
from inpaint.models.base import Base
from inpaint.paint.painter import Painter
from inpaint.paint.request import Control
from inpaint.train.latent import LatentInpainting
from inpaint.train.objective import MicroBatch, ParameterGroup
from inpaint.vision.control import ControlPictures


class ControlledInpainting(LatentInpainting):
    """Latent inpainting by a frozen base, to which a ControlNet adds; trained is the ControlNet alone (Zhang et al.
    2023, equation 5). Its pictures are made of the samples' images as they are read, mirrored and cropped."""

    def __init__(
        self,
        base: Base,
        controlnet: ControlNetModel,
        pictures: ControlPictures,
        *,
        learning_rate: float,
        **settings: Any,
    ) -> None:
        """Args: settings: as those of `LatentInpainting`."""
        super().__init__(base, [ParameterGroup(learning_rate, dict(controlnet.named_parameters()))], **settings)
        self.controlnet, self._pictures = controlnet, pictures

    def added(self, batch: MicroBatch, noised: Noised, kwargs: dict[str, Any]) -> dict[str, Any]:
        pictures_BHW3 = on_device(np.stack(self._pictures(list(batch["image"]))), noised.noisy_BChw.device)
        pictures_B3HW = pictures_BHW3.permute(0, 3, 1, 2).to(self.unet.conv_in.weight.dtype) / 255
        latents_BChw = noised.noisy_BChw.to(self.unet.conv_in.weight.dtype)
        down, middle = self.controlnet(
            latents_BChw, noised.timesteps_B, controlnet_cond=pictures_B3HW, return_dict=False, **kwargs
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    def controls(self, images: np.ndarray) -> list[Control | None]:
        return [Control(image=picture) for picture in self._pictures(list(images))]

    def painter(self, max_batch: int) -> Painter:
        return Painter(self.base, controlnet=self.controlnet, max_batch=max_batch)
