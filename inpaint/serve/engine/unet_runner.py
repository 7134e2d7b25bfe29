"""Steps of the U-Net: rows of one shape, each with its own adapters and text, advanced together.

What is worked out once for a batch (its adapters' matrices, its text's keys and values) is kept for as long as the same
rows go on together; batches of several shapes take turns without losing it.
"""

import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from inpaint.diffusion.samplers import Sampler, trajectory
from inpaint.diffusion.schedule import NoiseSchedule, schedule_of
from inpaint.models.base import Base
from inpaint.models.prompts import Conditioning
from inpaint.paint.denoise import Batch, BatchSettings, DenoisingRow
from inpaint.serve.engine.adapter_slots import AdapterSlots, Gathered
from inpaint.serve.engine.attention import TextKeyValueCache, TextKeyValues
from inpaint.serve.engine.settings import EngineSettings

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True, eq=False)
class Stack:
    """A batch with what is worked out once for it."""

    batch: Batch
    adapters: Gathered
    text: TextKeyValues


class UNetRunner:
    """A base's U-Net with the adapters in its slots. Changes the base in place."""

    def __init__(self, base: Base, settings: EngineSettings) -> None:
        self.base, self.settings = base, settings
        self.schedule: NoiseSchedule = schedule_of(base.scheduler).to(base.device)
        if settings.channels_last:
            for module in (base.unet, base.vae):
                module.to(memory_format=torch.channels_last)
        self.slots = AdapterSlots(base, slots=settings.slots, max_rank=settings.max_rank)
        self.unet: Callable[..., Any] = torch.compile(base.unet, dynamic=False) if settings.compile else base.unet
        self.unet_seconds = 0.0
        """Spent in calls of the U-Net; on a GPU what the host waits, not the device."""
        self._text = TextKeyValueCache(base.unet)
        self._batch_settings = BatchSettings(
            sizes=settings.batch_sizes,
            memory_format=torch.channels_last if settings.channels_last else torch.contiguous_format,
        )
        self._stacks: dict[tuple[int, int], Stack] = {}

    def advance(self, shape: tuple[int, int], rows: list[DenoisingRow]) -> Batch:
        """One step of all rows of a shape; those that stepped before and are not among them have left."""
        stack = self._stacks.pop(shape, None)
        if stack is not None and stack.batch.rows != rows:
            stack.batch.split()
            stack = None
        if stack is None:
            stack = self.stack(rows)
        self.step(stack)
        # Only now: where memory ran out, the rows are given up.
        self._stacks[shape] = stack
        return stack.batch

    def stack(self, rows: list[DenoisingRow]) -> Stack:
        """Rows that go on together, and what their adapters and texts come to."""
        batch = Batch(self.base, self.schedule, rows, self._batch_settings)
        adapters = self.slots.gather("unet", batch.unet_uses, fixed=self.settings.compile)
        self.slots.install("unet", adapters)
        return Stack(batch, adapters, self._text.compute(batch.text_ULD))

    def step(self, stack: Stack) -> None:
        """One step of all its rows."""
        self.slots.install("unet", stack.adapters)
        self._text.install(stack.text)
        stack.batch.advance(self._timed_unet)

    def forget(self, present: Collection[tuple[int, int]]) -> None:
        """Free what is kept for shapes that have no rows any more."""
        for shape in self._stacks.keys() - present:
            del self._stacks[shape]

    def check(self) -> None:
        """A step of one row of the smallest shape, to see that the U-Net can."""
        base, info = self.base, self.base.info
        side = (info.default_size if self.settings.compile else info.size_multiple) // info.downsample
        blank_Chw = torch.zeros(base.vae.config.latent_channels, side, side, device=base.device)
        text_1LD = torch.zeros(1, 1, int(base.unet.config.cross_attention_dim), device=base.device, dtype=base.dtype)
        pooled_1P = None
        if info.is_xl:
            pooled_1P = text_1LD.new_zeros(1, base.text_encoders[1].config.projection_dim)
        row = DenoisingRow(
            trajectory=trajectory(self.schedule, Sampler.DDIM, 1),
            generator=torch.Generator(),
            latents_Chw=blank_Chw,
            clean_Chw=blank_Chw,
            noise_Chw=blank_Chw,
            hole_1hw=blank_Chw[:1],
            known_Chw=blank_Chw,
            text=Conditioning(text_1LD, pooled_1P),
            negative=None,
            guidance_scale=1.0,
        )
        stack = self.stack([row])
        self.step(stack)
        if not torch.isfinite(stack.batch.latents_BChw).all():
            raise AssertionError("the U-Net gives numbers that are not finite")

    def attention(self) -> AbstractContextManager[None]:
        """The context to step in."""
        name = self.settings.attention
        return nullcontext() if name == "auto" else sdpa_kernel(_BACKENDS[name])

    def _timed_unet(self, *arguments: Any, **settings: Any) -> Any:
        started = time.perf_counter()
        output = self.unet(*arguments, **settings)
        self.unet_seconds += time.perf_counter() - started
        return output
