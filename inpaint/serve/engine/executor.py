"""What the scheduler decides, done: photos read, adapters loaded, text and photos encoded, steps taken, pictures
decoded and pasted back. With torch by `torch_executor`, on ONNX Runtime by `onnx_executor`.

`read`, `load` and `paste` may be called from any thread; all else belongs to the engine's loop.
"""

import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inpaint.diffusion.schedule import NoiseSchedule
from inpaint.errors import InpaintError
from inpaint.models.adapter import Adapter
from inpaint.models.base import BaseInfo
from inpaint.paint.crop import WorkingImage, pasted, working_image
from inpaint.paint.request import Control, PaintRequest, SamplingSettings
from inpaint.serve.engine.scheduler import Job, Outcome
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.engine.side_stream import StreamEvent
from inpaint.serve.service import AdapterUse, Painted, PaintOrder, Preview

LoadAdapter = Callable[[str, str], Adapter]
"""(name, digest) -> that version, verified. Blocks; called off the loop's thread. Raises AdapterGone."""


class Executor(ABC):
    """The work of an engine on one base. What it hands out as an adapter or as latents, it alone understands."""

    def __init__(self, info: BaseInfo, schedule: NoiseSchedule, settings: EngineSettings) -> None:
        self.info, self.schedule, self.settings = info, schedule, settings
        self.seconds = dict.fromkeys(("prepare", "text", "unet", "step", "decode", "load"), 0.0)
        """By stage, of the loop's time; `load` is the loaders'. On a GPU what the loop waits."""

    def read(self, order: PaintOrder) -> WorkingImage:
        """The photo at its working shape. Raises InpaintError for what cannot be painted here."""
        order.request.sampling.trajectory(self.schedule)
        return working_image(self.info, order.request)

    @abstractmethod
    def load(self, use: AdapterUse) -> Any:
        """An adapter ready for a slot. Raises InpaintError where there is none, or none that belongs to the base."""

    @abstractmethod
    def put(self, slot: int, loaded: Any) -> None:
        """An adapter takes a slot, in place of the one that was there."""

    @abstractmethod
    def encode(self, jobs: list[Job]) -> StreamEvent:
        """Gives jobs of one shape their rows; they may step once the event is past."""

    @abstractmethod
    def advance(self, jobs: list[Job]) -> tuple[Any, Any]:
        """One step of jobs of one shape: their latents after it, and the clean ones predicted, each B x C x h x w.
        Where it raises, all stand where they did."""

    @abstractmethod
    def decode(self, pictures: list[Outcome]) -> tuple[Tensor, StreamEvent]:
        """Images B x 3 x H x W in [0, 1] of pictures whose content is their latents; there once the event is past."""

    @abstractmethod
    def check(self) -> None:
        """Encodes a small blank picture and takes a step with it, to see that the base can."""

    def working(self) -> AbstractContextManager[None]:
        """Around all that the loop does."""
        return contextlib.nullcontext()

    def warm(self) -> Iterator[None]:
        """What is to be done before the first order comes, a part at each turn."""
        return iter(())

    def forget(self, shapes: Collection[tuple[int, int]]) -> None:  # noqa: B027 - there may be nothing to forget
        """No jobs of other shapes than these step for now."""

    def recover(self) -> None:  # noqa: B027
        """After something failed: frees the memory that can be done without."""

    def blank(self, height: int, width: int, *, controlled: bool = False) -> Job:
        """A picture of this working shape, all hole, with one step to take; read, not encoded. Raises InpaintError for
        a shape that the base cannot have."""
        image = np.zeros((height, width, 3), dtype=np.uint8)
        request = PaintRequest(
            image=image,
            hole=np.ones((height, width), dtype=bool),
            prompt="",
            seed=0,
            sampling=SamplingSettings(steps=1, guidance_scale=1.0, size=round(math.sqrt(height * width))),
            control=Control(image=image) if controlled else None,
        )
        job = Job(order=PaintOrder(id="blank", request=request), arrived=0.0, tell=lambda event: None)
        job.image = self.read(job.order)
        if job.image.shape != (height, width):
            multiple = self.info.size_multiple
            raise InpaintError(f"compile_shapes: {height} x {width} are not both multiples of {multiple}")
        return job

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """What is done meanwhile counts as this stage's."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started


def is_memory(error: BaseException) -> bool:
    """Whether memory ran out. Allocators of CPUs raise a plain RuntimeError, ONNX Runtime's its own."""
    gone = ("can't allocate memory", "Failed to allocate memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in gone)


def paste(picture: Outcome, image_3HW: Tensor, done: StreamEvent) -> Preview | Painted:
    """What is handed over: the photo with what was painted in its hole."""
    done.synchronize()
    job, index = picture.job, picture.index
    assert job.image is not None and job.started is not None
    image = pasted(job.order.request, job.image.window, image_3HW.permute(1, 2, 0).numpy())
    if index is not None:
        return Preview(index=index, image=image)
    return Painted(
        image=image,
        kept_pixels_changed=0,
        steps=job.step,
        batch_rows=job.rows_seen / job.step,
        queue_s=job.started - job.arrived,
        paint_s=time.monotonic() - job.started,
        tokens_cut=job.tokens_cut,
    )
