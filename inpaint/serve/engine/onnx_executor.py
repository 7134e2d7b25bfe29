"""An engine's work on ONNX Runtime: a base that was exported (`python -m ray_jobs.export --to onnx`, or `onnx_merged`),
on CPUs, without its weights in torch.

Guaranteed: the picture that `TorchExecutor` gives an order, to 1e-3 in [0, 1] before paste-back where the export is
fp32. ONNX Runtime has one adapter in a call, so each order steps by itself. Not covered, and refused: control pictures,
several adapters in one order.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inpaint.diffusion.schedule import NoiseSchedule
from inpaint.errors import InpaintError
from inpaint.export.onnx.adapter import save_onnx_adapter
from inpaint.export.onnx.painter import LoadedAdapter, OnnxPainter, Prompt, Row, Trajectory
from inpaint.models.adapter import check_adapter
from inpaint.models.base import DTYPES, BaseInfo
from inpaint.models.prompt_text import PromptSettings, read_prompt
from inpaint.paint.crop import WorkingImage
from inpaint.serve.engine.executor import Executor, LoadAdapter
from inpaint.serve.engine.scheduler import Job, Outcome
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.engine.side_stream import StreamEvent
from inpaint.serve.service import AdapterUse, PaintOrder

_STATED = ("prediction_type", "final_alpha_cumprod", "timestep_spacing", "steps_offset", "clip_range", "stated")


class OnnxExecutor(Executor):
    """Paints with an exported base."""

    def __init__(
        self, folder: Path, info: BaseInfo, precision: str, settings: EngineSettings, load: LoadAdapter, *, threads: int
    ) -> None:
        """
        Args:
            folder: of the export.
            info: of the base that is served.
            precision: of `DTYPES`, that it shall have been exported in.
            threads: of each operator.

        Raises:
            InpaintError: it is no export of this base in this precision, or of another version of ours.
        """
        self._load = load
        self.painter = _opened(folder, info, precision, threads)
        about = self.painter.base
        alphas_cumprod_T = torch.tensor(about["alphas_cumprod"])
        schedule = NoiseSchedule(alphas_cumprod_T=alphas_cumprod_T, **{name: about[name] for name in _STATED})
        # One order steps at a time, or two without guidance: together they would not be faster, and all later.
        super().__init__(info, schedule, settings.model_copy(update={"max_rows": 2}))
        self._slots: dict[int, LoadedAdapter] = {}

    def read(self, order: PaintOrder) -> WorkingImage:
        """See `Executor`."""
        if order.request.control is not None:
            raise InpaintError("control: painters on ONNX Runtime have no ControlNet; leave the picture out")
        if len(order.adapters) > 1:
            names = ", ".join(use.name for use in order.adapters)
            raise InpaintError(f"adapters {names}: painters on ONNX Runtime take one in an order; leave the others out")
        return super().read(order)

    def load(self, use: AdapterUse) -> LoadedAdapter:
        """See `Executor`. The adapter's file for ONNX Runtime is made anew from the registry's, and not kept."""
        with self.timed("load"), tempfile.TemporaryDirectory(prefix="inpaint-") as aside:
            adapter = self._load(use.name, use.digest)
            check_adapter(adapter, self.info, max_rank=self.settings.max_rank)
            path = save_onnx_adapter(aside, adapter, use.digest)
            try:
                return self.painter.read_adapter(use.name, path)
            except ValueError as error:  # an export with an adapter in it takes no other
                raise InpaintError(str(error)) from error

    def put(self, slot: int, loaded: LoadedAdapter) -> None:
        """See `Executor`."""
        self._slots[slot] = loaded

    def encode(self, jobs: list[Job]) -> StreamEvent:
        """See `Executor`."""
        for job in jobs:
            job.row = self._begun(job)
            job.tokens_cut = job.row.tokens_cut
            assert job.row.left == job.steps, "the scheduler counts the steps that the sampler takes"
        return torch.cpu.Event()

    def advance(self, jobs: list[Job]) -> tuple[np.ndarray, np.ndarray]:
        """See `Executor`."""
        with self.timed("unet"):
            rows = [self.painter.step(job.row) for job in jobs]
        for job, row in zip(jobs, rows, strict=True):
            job.row = row
        return np.concatenate([row.latents for row in rows]), np.concatenate([row.clean for row in rows])

    def decode(self, pictures: list[Outcome]) -> tuple[Tensor, StreamEvent]:
        """See `Executor`."""
        with self.timed("decode"):
            images_BHW3 = np.stack([self.painter.decode(picture.content) for picture in pictures])
        return torch.from_numpy(images_BHW3).permute(0, 3, 1, 2), torch.cpu.Event()

    def check(self) -> None:
        """See `Executor`."""
        side = self.info.size_multiple
        row = self.painter.step(self._begun(self.blank(side, side)))
        if not np.isfinite(row.latents).all():
            raise AssertionError("the U-Net gives numbers that are not finite")

    def _begun(self, job: Job) -> Row:
        request, image = job.order.request, job.image
        assert image is not None
        path, settings = request.sampling.trajectory(self.schedule), request.sampling
        (slot, weight), *_ = job.uses or ((0, 1.0),)
        with self.timed("prepare"):
            return self.painter.begin(
                image.image_HW3,
                image.hole_HW,
                _pieces(request.prompt, settings),
                trajectory=Trajectory(path.timesteps_S, path.table_SK, path.start_clean, path.start_noise),
                guidance_scale=settings.guidance_scale or 1.0,
                adapter=self._slots[slot] if job.uses else None,
                weight=weight,
                negative_prompt=_pieces(request.negative_prompt, settings),
                windows=settings.prompt_chunks,
                seed=request.seed,
                start=settings.start,
                text_alone=request.text_alone,
            )


def _opened(folder: Path, info: BaseInfo, precision: str, threads: int) -> OnnxPainter:
    try:
        about = json.loads((folder / "base.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InpaintError(
            f"onnx {folder}: no export of a base ({error}); make one with python -m ray_jobs.export --to onnx"
        ) from error
    if about["revision"] != info.revision:
        raise InpaintError(
            f"onnx {folder}: exported from base {about['base']} at {about['revision'][:12]}, served is {info.name} at "
            f"{info.revision[:12]}: export that base, or serve the other one"
        )
    if about["precision"] != str(DTYPES[precision]):
        raise InpaintError(f"precision {precision}: onnx {folder} is in {about['precision']}; give its precision")
    try:
        return OnnxPainter(folder, threads=threads)
    except ValueError as error:
        raise InpaintError(f"onnx {error}") from error


def _pieces(prompt: str, settings: PromptSettings) -> Prompt:
    return read_prompt(prompt, settings).parts
