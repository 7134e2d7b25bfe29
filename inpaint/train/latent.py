"""The objective of every workload on a latent base: noise prediction in the hole (docs/architecture.md).

Shapes: B samples, H x W pixels, h x w latents, C latent channels.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inpaint.data.decode import PAINT
from inpaint.device import memory_format, on_device
from inpaint.diffusion import keyed
from inpaint.diffusion.objective import HoleDiffusion, LossSettings, Noised, hole_area
from inpaint.diffusion.schedule import schedule_of
from inpaint.evaluate.metrics import hole_figures
from inpaint.models.base import Base
from inpaint.models.latents import Posterior, posterior_of, shrink_hole, unet_input
from inpaint.models.prompt_text import AS_WRITTEN, PromptSettings, read_prompt, tokenize
from inpaint.models.prompts import Conditioning, encode_together, unet_kwargs, warn_of_cuts
from inpaint.paint.painter import Painter
from inpaint.paint.paste import comparison
from inpaint.paint.request import Control, PaintRequest, SamplingSettings
from inpaint.train.encoder import moments_of
from inpaint.train.objective import MicroBatch, PaintedSample, ParameterGroup, autocast, by_row, to_hole
from inpaint.train.settings import Precision
from inpaint.train.texts import EncodedTexts

EncodeBatch = Callable[[MicroBatch, Tensor], tuple[Posterior, Posterior | None]]
"""(micro-batch, hole B 1 H W) -> the posterior of the images, and for 9 channels that of the masked ones."""


class LatentInpainting(nn.Module):
    """Predicts the noise of a noisy latent; 9-channel bases are shown hole and masked image beside it. What the U-Net
    sees is what painting shows it. All randomness is keyed by (seed, purpose, position)."""

    def __init__(
        self,
        base: Base,
        groups: list[ParameterGroup],
        *,
        seed: int,
        loss: LossSettings,
        precision: Precision,
        prompts: PromptSettings = AS_WRITTEN,
        encode_batch: EncodeBatch | None = None,
        texts_once: bool = False,
    ) -> None:
        """
        Args:
            encode_batch: where latents come from; None: with the batch, or from the base's own VAE.
            texts_once: keep what the text encoders make of a prompt, for they are not trained. Not under ZeRO 3, where
                all ranks must run them together.
        """
        super().__init__()
        self.base = base
        base.vae.to(memory_format=torch.channels_last)
        self.seed = seed
        self.precision = precision
        self.diffusion = HoleDiffusion(schedule_of(base.scheduler), loss, seed=seed)
        self.prompts = prompts
        self.encode_batch = encode_batch or self._encode
        self.texts = EncodedTexts(base, prompts) if texts_once else None
        # The VAE is not registered: DeepSpeed would shard it, and cast SDXL's, which overflows in fp16.
        self.unet = base.unet
        self.text_encoders = nn.ModuleList(base.text_encoders)
        self._groups = groups
        self._dropped = by_row(self, seed)

    def groups(self) -> list[ParameterGroup]:
        return self._groups

    def forward(self, batch: MicroBatch, *, validating: bool = False) -> Tensor:
        # Not `base.device`: diffusers finds it by walking through all modules, which costs 4 % of a small step.
        device = self.unet.conv_in.weight.device
        # One copy to the device for all of them.
        told = [batch[name] for name in ("position", "original_size", "crop_top_left")]
        told_B5 = on_device(np.column_stack(told), device)
        positions_B, origin_B4 = told_B5[:, 0], told_B5[:, 1:]
        self._dropped[:] = batch["position"].tolist()
        hole_B1HW = to_hole(batch["hole"], device)
        purpose = "validation " if validating else ""

        def sampled(posterior: Posterior, name: str) -> Tensor:
            return posterior.sample(keyed.normal(self.seed, f"{purpose}{name}", positions_B, posterior.shape))

        with autocast(self.precision, device):
            image, known = self.encode_batch(batch, hole_B1HW)
            noised = self.diffusion.noise(sampled(image, "vae"), positions_B, validating=validating)
            known_BChw = None if known is None else sampled(known, "masked vae")
            hole_B1hw = shrink_hole(hole_B1HW, self.base.info.downsample)
            inputs = unet_input(noised.noisy_BChw, hole_B1hw, known_BChw)
            text = self._text([str(prompt) for prompt in batch["prompt"]])
            kwargs = unet_kwargs(text, *hole_B1HW.shape[-2:], origin_B4=origin_B4)
            kwargs |= self.added(batch, noised, kwargs)
            # The weights may not be: ZeRO keeps trained ones in flat buffers.
            inputs = inputs.to(self.unet.conv_in.weight.dtype).contiguous(memory_format=memory_format(device))
            output_BChw = self.unet(inputs, noised.timesteps_B, **kwargs).sample
        size_hw = (output_BChw.shape[2], output_BChw.shape[3])
        counted_B1hw = None
        if "area" in batch:
            counted_B1hw = hole_area(hole_B1HW * to_hole(batch["area"], device), size_hw)
        return self.diffusion.loss_of(output_BChw, noised, hole_area(hole_B1HW, size_hw), counted_B1hw)

    def added(self, batch: MicroBatch, noised: Noised, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the U-Net is told beside its own keyword arguments."""
        return {}

    def _text(self, prompts: list[str]) -> Conditioning:
        if self.texts is not None:
            text, cut = self.texts.of(prompts)
        else:
            read = [read_prompt(prompt, self.prompts) for prompt in prompts]
            tokens = tokenize(self.base.tokenizers, [read] * len(self.base.tokenizers))
            text, cut = encode_together(self.base, tokens), tokens.cut
        warn_of_cuts(cut)
        return text

    def _encode(self, batch: MicroBatch, hole_B1HW: Tensor) -> tuple[Posterior, Posterior | None]:
        vae, sees_masked = self.base.vae, self.base.info.in_channels == 9
        found = moments_of(batch, hole_B1HW, vae, sees_masked=sees_masked)
        image, *known = (posterior_of(vae, moments_BMhw) for moments_BMhw in found)
        return image, known[0] if known else None

    def paint(self, batch: MicroBatch, count: int) -> list[PaintedSample]:
        """Input, hole and painting side by side, and how near it is to the truth."""
        photos = batch.get("input", batch["image"])[:count]
        holes = batch["hole"][:count] >= PAINT
        sampling = SamplingSettings(**asdict(self.prompts))
        requests = [
            PaintRequest(image=photo, hole=hole, prompt=str(prompt), seed=number, sampling=sampling, control=control)
            for number, (photo, hole, prompt, control) in enumerate(
                zip(photos, holes, batch["prompt"], self.controls(batch["image"][:count]), strict=False)
            )
        ]
        with autocast(self.precision, self.unet.conv_in.weight.device):
            painted = self.painter(count).paint(requests)
        return [
            PaintedSample(comparison(r.image, r.hole, result), hole_figures(result, truth, r.hole))
            for r, result, truth in zip(requests, painted, batch["image"], strict=False)
        ]

    def controls(self, images: np.ndarray) -> list[Control | None]:
        """What a ControlNet is shown of images, B H W 3 uint8, in their painting."""
        return [None] * len(images)

    def painter(self, max_batch: int) -> Painter:
        """Paints with what is trained, as it stands."""
        return Painter(self.base, max_batch=max_batch)
