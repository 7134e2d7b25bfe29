"""An engine's work with torch: rows of any adapter, step and sampler in one forward."""

import contextlib
import time
from collections.abc import Collection, Iterator
from dataclasses import replace

import torch
from diffusers import ControlNetModel
from torch import Tensor

from inpaint.errors import InpaintError
from inpaint.models.base import Base
from inpaint.models.latents import decode
from inpaint.paint.crop import WorkingImage
from inpaint.paint.denoise import DenoisingRow, start_rows
from inpaint.serve.engine.adapter_slots import PackedAdapter
from inpaint.serve.engine.executor import Executor, LoadAdapter
from inpaint.serve.engine.prompt_encoder import Prompt, PromptEncoder
from inpaint.serve.engine.scheduler import Job, Outcome
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.engine.side_stream import SideStream, StreamEvent
from inpaint.serve.engine.unet_runner import UNetRunner
from inpaint.serve.service import AdapterUse, PaintOrder


class TorchExecutor(Executor):
    """Changes the base in place."""

    def __init__(
        self, base: Base, settings: EngineSettings, load: LoadAdapter, controlnet: ControlNetModel | None = None
    ) -> None:
        """Args: controlnet: of orders with a control picture; None: these are refused."""
        self.base, self._load = base, load
        self.runner = UNetRunner(base, settings, controlnet)
        super().__init__(base.info, self.runner.schedule, settings)
        self.encoder = PromptEncoder(base, self.runner.slots, cached=settings.prompt_cache)
        self.side = SideStream(base.device)
        self._last_step = self.side.mark()

    def read(self, order: PaintOrder) -> WorkingImage:
        """The photo at its working shape. Raises InpaintError for what cannot be painted here."""
        if order.request.control is not None and self.runner.controlnet is None:
            raise InpaintError("control: no ControlNet is served here; leave the picture out")
        return super().read(order)

    def load(self, use: AdapterUse) -> PackedAdapter:
        """An adapter ready for a slot. Raises InpaintError where there is none, or none that belongs to the base."""
        with self.timed("load"):
            return self.runner.slots.pack(self._load(use.name, use.digest))

    def put(self, slot: int, packed: PackedAdapter) -> None:
        """Copies an adapter into a slot."""
        # On the side: a text that was encoded there with what lies in the slot may not be done yet.
        with self.side.work():
            self.runner.slots.put(slot, packed)

    def encode(self, jobs: list[Job]) -> StreamEvent:
        """Gives jobs of one shape their rows; they may step once the event is past."""
        with self.side.work() as done:
            with self.timed("text"):
                prompts = [_prompt(job) for job in jobs]
                negatives = [_prompt(job, is_negative=True) if _is_guided(job) else None for job in jobs]
                texts = self.encoder.encode([*prompts, *filter(None, negatives)])
            with self.timed("prepare"):
                rows = start_rows(
                    self.base,
                    self.runner.schedule,
                    [job.order.request for job in jobs],
                    [job.image for job in jobs if job.image is not None],
                    [texts[prompt] for prompt in prompts],
                    [None if negative is None else texts[negative] for negative in negatives],
                )
                for job, row in zip(jobs, rows, strict=True):
                    assert row.left == job.steps, "the scheduler counts the steps that the sampler takes"
                    row.uses = job.uses
                    job.tokens_cut = sum(text.cut for text in (row.text, row.negative) if text is not None)
                    self.side.hand_over(_tensors_of(row))
                    job.row = row
        return done

    def advance(self, jobs: list[Job]) -> tuple[Tensor, Tensor]:
        """One step of jobs of one shape: their latents after it, and the clean ones predicted, each B x C x h x w."""
        started, before = time.perf_counter(), self.runner.unet_seconds
        shape = jobs[0].shape
        assert shape is not None
        batch = self.runner.advance(shape, [job.row for job in jobs if job.row is not None])
        # The host is one step ahead of the device at most: who comes and goes does so soon.
        self._last_step.synchronize()
        self._last_step = self.side.mark()
        in_unet = self.runner.unet_seconds - before
        self.seconds["unet"] += in_unet
        self.seconds["step"] += time.perf_counter() - started - in_unet
        return batch.latents_BChw, batch.clean_BChw

    def decode(self, pictures: list[Outcome]) -> tuple[Tensor, StreamEvent]:
        """Images B x 3 x H x W in [0, 1] of pictures whose content is their latents; there once the event is past."""
        with self.timed("decode"), self.side.work() as done:
            latents_BChw = torch.cat([self.side.borrow(picture.content) for picture in pictures])
            return self.side.to_host(decode(self.base, latents_BChw)), done

    def warm(self) -> Iterator[None]:
        """Compiles all that shall be compiled, one shape and number of rows at each turn; afterwards nothing is any
        more. Raises InpaintError for a shape that the base cannot have."""
        settings, side = self.runner.settings, self.base.info.default_size
        for shape in settings.compile_shapes or [(side, side)] if settings.compile else []:
            kinds = [False] if self.runner.controlnet is None else [False, True]
            for row in [self._row(*shape, controlled=controlled) for controlled in kinds]:
                for rows in settings.batch_sizes:
                    self.runner.step(self.runner.stack([replace(row) for _ in range(rows)]))
                    yield
        self.runner.is_warm = True

    def check(self) -> None:
        """Encodes a small blank picture and takes a step with it, to see that the base can."""
        side = self.base.info.size_multiple
        stack = self.runner.stack([self._row(side, side)])
        self.runner.step(stack)
        if not torch.isfinite(stack.batch.latents_BChw).all():
            raise AssertionError("the U-Net gives numbers that are not finite")

    def _row(self, height: int, width: int, *, controlled: bool = False) -> DenoisingRow:
        """Of a blank picture, ready to step."""
        job = self.blank(height, width, controlled=controlled)
        self.encode([job]).synchronize()
        assert isinstance(job.row, DenoisingRow)
        return job.row

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Without gradients, and with the attention that the settings say."""
        with torch.inference_mode(), self.runner.attention():
            yield

    def forget(self, shapes: Collection[tuple[int, int]]) -> None:
        """See `Executor`."""
        self.runner.forget(shapes)

    def recover(self) -> None:
        """After something failed: frees the memory that can be done without."""
        self.runner.disband()
        self.side.free()


def _is_guided(job: Job) -> bool:
    return job.order.request.sampling.is_guided


def _prompt(job: Job, *, is_negative: bool = False) -> Prompt:
    request = job.order.request
    text = request.negative_prompt if is_negative else request.prompt
    return Prompt(text, job.order.adapters, job.uses, is_negative, request.sampling.prompts)


def _tensors_of(row: DenoisingRow) -> Iterator[Tensor]:
    """All that a row holds on the device."""
    texts = [row.text] if row.negative is None else [row.text, row.negative]
    for holder in (row, *texts):
        yield from (value for value in vars(holder).values() if isinstance(value, Tensor))
    if row.control is not None:
        yield row.control[0]
