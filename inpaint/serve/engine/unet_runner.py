"""Buckets: the rows of one shape, of which each tick advances as many as fit, oldest first."""

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from inpaint.diffusion.schedule import NoiseSchedule, schedule_of
from inpaint.models.base import Base
from inpaint.models.prompts import Conditioning, unet_kwargs
from inpaint.paint.denoise import Batch, BatchSettings, DenoisingRow
from inpaint.serve.engine.attention import Kept, TextMemory
from inpaint.serve.engine.jobs import Job
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.engine.slots import AdapterSlots

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


class UNetRunner:
    """The base's U-Net with the bank's adapters, as the engine's ticks use it. Changes the base in place."""

    def __init__(self, base: Base, settings: EngineSettings) -> None:
        self.base, self.settings = base, settings
        self.schedule: NoiseSchedule = schedule_of(base.scheduler).to(base.device)
        if settings.channels_last:
            for module in (base.unet, base.vae):
                module.to(memory_format=torch.channels_last)
        self.bank = AdapterSlots(base, slots=settings.slots, max_rank=settings.max_rank)
        self.memory = TextMemory(base.unet)
        self.unet: Callable[..., Any] = torch.compile(base.unet, dynamic=False) if settings.compile else base.unet
        self.batch_settings = BatchSettings(
            sizes=settings.batch_sizes,
            memory_format=torch.channels_last if settings.channels_last else torch.contiguous_format,
        )
        self._kept: Kept | None = None

    def stack(self, rows: list[DenoisingRow]) -> "Stack":
        """Rows that go on together, and what their adapters and texts come to."""
        batch = Batch(self.base, self.schedule, rows, self.batch_settings)
        gathered = self.bank.gather("unet", batch.unet_uses, fixed=self.settings.compile)
        self.bank.install("unet", gathered)
        return Stack(batch, gathered, self.memory.keep(batch.text_ULD))

    def install(self, stack: "Stack") -> None:
        """Let the U-Net work for these rows; costs nothing where it does so already."""
        self.bank.install("unet", stack.gathered)
        if self._kept is not stack.kept:
            self.memory.install(stack.kept)
            self._kept = stack.kept

    def forward(self) -> None:
        """A forward of the U-Net, of one row of the smallest shape, to see that it can."""
        base, compiled = self.base, self.settings.compile
        side = (base.info.default_size if compiled else base.info.size_multiple) // base.info.downsample
        count = self.settings.batch_sizes[0] if compiled else 1
        latents = torch.zeros(count, base.info.in_channels, side, side, device=base.device, dtype=base.dtype)
        width = int(base.unet.config.cross_attention_dim)
        text_ULD = torch.zeros(count, 1, width, device=base.device, dtype=base.dtype)
        pooled_UP = None
        if base.info.is_xl:
            pooled_UP = torch.zeros(
                count, base.text_encoders[1].config.projection_dim, device=base.device, dtype=base.dtype
            )
        self.bank.install("unet", self.bank.gather("unet", [()] * count, fixed=compiled))
        self._kept = self.memory.keep(text_ULD)
        self.memory.install(self._kept)
        kwargs = unet_kwargs(
            Conditioning(text_ULD, pooled_UP), side * base.info.downsample, side * base.info.downsample
        )
        output = self.unet(
            latents.contiguous(memory_format=self.batch_settings.memory_format),
            torch.zeros(count, device=base.device),
            return_dict=False,
            **kwargs,
        )[0]
        if not torch.isfinite(output).all():
            raise AssertionError("the U-Net gives numbers that are not finite")

    def attention(self) -> AbstractContextManager[None]:
        """The context to call the U-Net in."""
        name = self.settings.attention
        return nullcontext() if name == "auto" else sdpa_kernel(_BACKENDS[name])


@dataclass(eq=False)
class Stack:
    """A batch with what is worked out once for it."""

    batch: Batch
    gathered: tuple[Tensor | None, int]
    kept: Kept


class Bucket:
    """Jobs of one shape: those in its batch, and those that wait for a place in it."""

    def __init__(self, runner: UNetRunner) -> None:
        self.runner = runner
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self._stack: Stack | None = None

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    @property
    def rows(self) -> int:
        """U-Net rows of a tick."""
        return sum(job.unet_rows for job in self.running)

    def refill(self) -> list[Job]:
        """Takes in those that waited, in their order, while there is room; returns them."""
        taken = []
        rows = self.rows
        while self.waiting and rows + self.waiting[0].unet_rows <= self.runner.settings.max_rows:
            job = self.waiting.popleft()
            rows += job.unet_rows
            taken.append(job)
        if taken:
            self._split()
            self.running += taken
        return taken

    def advance(self, unet: Callable[..., Any]) -> None:
        """One tick: one step of all that are running."""
        if self._stack is None:
            self._stack = self.runner.stack([job.row for job in self.running if job.row is not None])
        self.runner.install(self._stack)
        self._stack.batch.advance(unet)

    def clean(self, job: Job) -> Tensor:
        """The clean latents 1 x C x h x w that the last step of a running job predicted."""
        assert self._stack is not None
        index = self.running.index(job)
        return self._stack.batch.clean_BChw[index : index + 1]

    def remove(self, gone: list[Job]) -> None:
        """Takes jobs out, their rows as the last tick left them."""
        if any(job in self.running for job in gone):
            self._split()
            self.running = [job for job in self.running if job not in gone]
        self.waiting = deque(job for job in self.waiting if job not in gone)

    def _split(self) -> None:
        if self._stack is not None:
            self._stack.batch.split()
            self._stack = None
