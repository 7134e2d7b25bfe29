"""The painter: fills holes with one base, many requests per U-Net call.

Guaranteed: at the base's size, the picture of diffusers' inpaint pipeline with DDIM, strength 1 and the same seed (1e-3
in [0, 1] before paste-back, float32); a request's picture does not depend on what shared its batch (same bound);
pixels outside the hole come back bit for bit. Not covered: strength below 1, other samplers.

Shapes: B rows; H W working pixels, h w latents; C latent channels.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from inpaint.diffusion.samplers import ddim_step
from inpaint.diffusion.schedule import previous_timesteps, sampling_timesteps, schedule_of
from inpaint.errors import InpaintError
from inpaint.models.base import Base
from inpaint.models.latents import decode, guided, keep_known, predict, prepare
from inpaint.models.prompts import encode_negative_prompts, encode_prompts
from inpaint.paint.paste import assert_kept, paste_back
from inpaint.paint.request import PaintRequest
from inpaint.paint.shapes import resize_hole, resize_image, working_shape


class Painter:
    """Paints requests with one base (and the adapter applied to it, if any)."""

    def __init__(self, base: Base, *, device: str | torch.device | None = None, max_batch: int = 8) -> None:
        """Args: device: moved there; default: where the base is. max_batch: most requests per U-Net call."""
        if max_batch < 1:
            raise InpaintError(f"max_batch {max_batch}: give at least 1")
        self.base = base if device is None else base.to(device)
        self.max_batch = max_batch
        self.schedule = schedule_of(base.scheduler).to(self.base.device)

    def paint(self, requests: Sequence[PaintRequest]) -> list[np.ndarray]:
        """The originals with their holes painted, H x W x 3 uint8, in the requests' order.

        A request without a hole gets its image back, and costs nothing.
        """
        painted = iter(self.paint_raw([r for r in requests if r.hole.any()]))
        return [_pasted(r, next(painted)) if r.hole.any() else r.image.copy() for r in requests]

    def paint_raw(self, requests: Sequence[PaintRequest]) -> list[np.ndarray]:
        """What the VAE decodes, before paste-back: float32 in [0, 1], each at its working shape H x W x 3."""
        groups: dict[tuple[tuple[int, int], int], list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[self.shape_of(request), request.steps].append(index)
        results: dict[int, np.ndarray] = {}
        with torch.no_grad(), _evaluating(self.base):
            for (shape, steps), indices in groups.items():
                for start in range(0, len(indices), self.max_batch):
                    batch = indices[start : start + self.max_batch]
                    images = self._paint_batch([requests[i] for i in batch], shape, steps)
                    results.update(zip(batch, images, strict=True))
        return [results[i] for i in range(len(requests))]

    def shape_of(self, request: PaintRequest) -> tuple[int, int]:
        """The request's working height and width."""
        size = request.size or self.base.default_size
        height, width = request.hole.shape
        return working_shape(height, width, size=size, multiple=self.base.size_multiple)

    def _paint_batch(self, requests: list[PaintRequest], shape: tuple[int, int], steps: int) -> list[np.ndarray]:
        base, schedule = self.base, self.schedule
        images_BHW3 = np.stack([resize_image(r.image, shape) for r in requests])
        hole_BHW = np.stack([resize_hole(r.hole, shape) for r in requests])
        pixels_B3HW = torch.from_numpy(images_BHW3).to(base.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        hole_B1HW = torch.from_numpy(hole_BHW).to(base.device)[:, None].float()
        generators = [torch.Generator("cpu").manual_seed(r.seed) for r in requests]
        canvas = prepare(base, pixels_B3HW, hole_B1HW, generators)

        rows = [i for i, r in enumerate(requests) if r.guidance_scale > 1]
        text = encode_prompts(base, [r.prompt for r in requests])
        if rows:
            text = guided(text, encode_negative_prompts(base, [requests[i].negative_prompt for i in rows]), rows)
        scales_B = torch.tensor([r.guidance_scale for r in requests], device=base.device)

        latents_BChw = canvas.noise_BChw
        visited = sampling_timesteps(schedule, steps).tolist()
        for timestep, following in zip(visited, [*visited[1:], -1], strict=True):
            timesteps_B = torch.full((len(requests),), timestep, device=base.device)
            output_BChw = predict(base, canvas, latents_BChw, timesteps_B, text, rows, scales_B)
            previous_B = previous_timesteps(schedule, timesteps_B, steps)
            latents_BChw = ddim_step(schedule, output_BChw, latents_BChw, timesteps_B, previous_B)
            if base.in_channels == 4:
                latents_BChw = keep_known(schedule, canvas, latents_BChw, torch.full_like(timesteps_B, following))
        return list(decode(base, latents_BChw).permute(0, 2, 3, 1).cpu().numpy())


def _pasted(request: PaintRequest, painted: np.ndarray) -> np.ndarray:
    small = np.rint(painted * 255).astype(np.uint8)
    large = resize_image(small, request.hole.shape)
    result = paste_back(request.image, large, request.hole, feather=request.feather)
    assert_kept(request.image, result, request.hole)
    return result


@contextmanager
def _evaluating(base: Base) -> Iterator[None]:
    """Evaluation mode for the while, then each module's own mode again: training paints, too."""
    modules = [m for root in (*base.text_encoders, base.vae, base.unet) for m in root.modules()]
    training = [m.training for m in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode
