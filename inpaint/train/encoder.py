"""Pixels -> moments of latents, in whichever process: the same bits everywhere, but for other numbers of threads.

Shapes: B samples, H x W pixels, h x w latents, C latent channels.
"""

from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from inpaint.data.latents import LatentSpec
from inpaint.device import on_device, use_cores
from inpaint.models.latents import masked, moments
from inpaint.train.objective import MicroBatch, to_hole, to_pixels

MOMENTS = ("latents", "masked_latents")
"""Those of a batch that was encoded before, of its images and of its masked ones."""


def each_alone(vae: AutoencoderKL, pixels_B3HW: Tensor) -> Tensor:
    """`moments` of each image by itself: in a batch they are other numbers by a rounding, and what is encoded once for
    all of a run, in no batch of it, shall be the same to the bit. Only in fp32: of fewer bits nobody asks that, and a
    batch is faster."""
    if vae.dtype != torch.float32:
        return moments(vae, pixels_B3HW)
    return torch.cat([moments(vae, one_3HW[None]) for one_3HW in pixels_B3HW])


def moments_of(batch: MicroBatch, hole_B1HW: Tensor, vae: AutoencoderKL, *, sees_masked: bool) -> list[Tensor]:
    """Of a batch's images and, where the model sees them, of its masked ones, each B 2C h w: as they came with the
    batch, or encoded here."""
    device = hole_B1HW.device
    if MOMENTS[0] in batch:
        return [_tensor(batch[name], device) for name in MOMENTS if name in batch]
    image_B3HW = to_pixels(batch["image"], device)
    found = [each_alone(vae, image_B3HW)]
    if sees_masked:
        input_B3HW = to_pixels(batch["input"], device) if "input" in batch else image_B3HW
        found.append(each_alone(vae, masked(input_B3HW, hole_B1HW)))
    return found


class LatentEncoder:
    """A VAE in a process of its own."""

    def __init__(self, load_vae: Callable[[], AutoencoderKL], spec: LatentSpec, *, threads: int) -> None:
        use_cores(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.vae = load_vae().to(self.device).to(memory_format=torch.channels_last)
        self.spec = spec

    def encode_batch(self, batch: dict[str, np.ndarray], *, keeps_image: bool) -> dict[str, np.ndarray]:
        """The same batch with moments in place of pixels. Args: keeps_image: as `ReadSettings.keeps_image`."""
        holes_B1HW = to_hole(batch["hole"], self.device)
        found = moments_of(batch, holes_B1HW, self.vae, sees_masked=self.spec.sees_masked)
        gone = ("input",) if keeps_image else ("image", "input")
        kept = {name: values for name, values in batch.items() if name not in gone}
        size = (holes_B1HW.shape[2], holes_B1HW.shape[3])
        return kept | {name: self._bits(values, size) for name, values in zip(MOMENTS, found, strict=False)}

    def encode_one(self, image_HW3: np.ndarray, hole_HW: np.ndarray) -> np.ndarray:
        """The moments of an image without what is in the hole: 2C h w."""
        pixels_B3HW = to_pixels(image_HW3[None], self.device)
        moments_BMhw = each_alone(self.vae, masked(pixels_B3HW, to_hole(hole_HW[None], self.device)))
        return self._bits(moments_BMhw, (hole_HW.shape[0], hole_HW.shape[1]))[0]

    def _bits(self, values: Tensor, size: tuple[int, int]) -> np.ndarray:
        values = values.cpu().contiguous()
        bits = (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()
        wanted = (self.spec.dtype, self.spec.shape(size))
        assert (str(bits.dtype), bits.shape[1:]) == wanted, f"moments {bits.dtype} {bits.shape}, expected {wanted}"
        return bits


def _tensor(bits: np.ndarray, device: torch.device) -> Tensor:
    values = on_device(bits, device)
    return values.view(torch.bfloat16) if values.dtype == torch.int16 else values
