"""The painter: fills holes with one base, many requests per U-Net call.

Guaranteed: at the base's size, the picture of diffusers' inpaint pipeline with the same sampler, strength and seed
(1e-3 in [0, 1] before paste-back, float32); a request's picture does not depend on what shared its batch (same bound);
pixels outside the hole come back bit for bit.

Shapes: H W working pixels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from diffusers import ControlNetModel

from inpaint.diffusion.schedule import schedule_of
from inpaint.errors import InpaintError
from inpaint.models.base import Base
from inpaint.models.controlnet import check_controlnet
from inpaint.models.latents import decode
from inpaint.models.lora import weigh_lora
from inpaint.models.prompt_text import read_prompt
from inpaint.models.prompts import encode_rows, warn_of_cuts
from inpaint.paint.crop import WorkingImage, batches_of, pasted, window_of, working_image
from inpaint.paint.denoise import Batch, start_rows
from inpaint.paint.request import PaintRequest


class Painter:
    """Paints requests with one base (and the adapter applied to it, if any)."""

    def __init__(
        self,
        base: Base,
        *,
        controlnet: ControlNetModel | None = None,
        device: str | torch.device | None = None,
        max_batch: int = 8,
    ) -> None:
        """
        Args:
            controlnet: in the base's type.
            device: moved there; default: where the base is.
            max_batch: most requests per U-Net call.
        """
        if max_batch < 1:
            raise InpaintError(f"max_batch {max_batch}: give at least 1")
        if controlnet is not None:
            check_controlnet(controlnet, base)
        self.base = base if device is None else base.to(device)
        self.controlnet = None if controlnet is None else controlnet.to(self.base.device)
        self.max_batch = max_batch
        self.schedule = schedule_of(base.scheduler)

    def paint(self, requests: Sequence[PaintRequest]) -> list[np.ndarray]:
        """The originals with their holes painted, H x W x 3 uint8, in the requests' order.

        A request without a hole gets its image back, and costs nothing. Raises InpaintError for settings that the base
        cannot be sampled with, or a control picture without a ControlNet.
        """
        results = [request.image.copy() for request in requests]
        holed = [index for index, request in enumerate(requests) if request.hole.any()]
        for index, painted in zip(holed, self.paint_raw([requests[i] for i in holed]), strict=True):
            request = requests[index]
            results[index] = pasted(request, window_of(self.base.info, request), painted)
        return results

    def paint_raw(self, requests: Sequence[PaintRequest]) -> list[np.ndarray]:
        """What the VAE decodes, before paste-back: float32 in [0, 1], each at its working shape H x W x 3."""
        info = self.base.info
        requests = [replace(request, sampling=request.sampling.resolved(info)) for request in requests]
        if self.controlnet is None and any(request.control is not None for request in requests):
            raise InpaintError("control: this painter has no ControlNet; give it one, or leave the picture out")
        images = [working_image(info, request) for request in requests]
        results: dict[int, np.ndarray] = {}
        with torch.no_grad(), _evaluating(self.base, self.controlnet):
            weights = [request.adapter_weight for request in requests]
            kinds = [(image.shape, weight) for image, weight in zip(images, weights, strict=True)]
            for batch in batches_of(kinds, self.max_batch):
                with _weighed(self.base, weights[batch[0]]):
                    painted = self._paint_batch([requests[i] for i in batch], [images[i] for i in batch])
                results.update(zip(batch, painted, strict=True))
        return [results[i] for i in range(len(requests))]

    def _paint_batch(self, requests: list[PaintRequest], images: list[WorkingImage]) -> list[np.ndarray]:
        texts = encode_rows(self.base, [read_prompt(r.prompt, r.sampling) for r in requests])
        guided = [read_prompt(r.negative_prompt, r.sampling) for r in requests if r.sampling.is_guided]
        encoded = iter(encode_rows(self.base, guided, negative=True) if guided else [])
        negatives = [next(encoded) if r.sampling.is_guided else None for r in requests]
        warn_of_cuts(text.cut for text in (*texts, *filter(None, negatives)))
        rows = start_rows(self.base, self.schedule, requests, images, texts, negatives)
        running = rows
        while running:
            batch = Batch(self.base, self.schedule, running, controlnet=self.controlnet)
            for _ in range(min(row.left for row in running)):
                batch.advance(self.base.unet)
            batch.split()
            running = [row for row in running if row.left]
        images_B3HW = decode(self.base, torch.stack([row.latents_Chw for row in rows]))
        return list(images_B3HW.permute(0, 2, 3, 1).cpu().numpy())


@contextmanager
def _weighed(base: Base, weight: float) -> Iterator[None]:
    """With the base's LoRA of another weight for the while."""
    if weight == 1:
        yield
        return
    weigh_lora(base, weight)
    try:
        yield
    finally:
        weigh_lora(base, 1.0)


@contextmanager
def _evaluating(base: Base, controlnet: ControlNetModel | None) -> Iterator[None]:
    """Evaluation mode for the while, then each module's own mode again: training paints, too."""
    roots = [*base.text_encoders, base.vae, base.unet, *([] if controlnet is None else [controlnet])]
    modules = [m for root in roots for m in root.modules()]
    training = [m.training for m in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode
