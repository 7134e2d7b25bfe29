"""Panel LoRA: SDXL learns to complete a composite, such as a character sheet, from its visible panels."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Self

import numpy as np

from inpaint.data.bank import Bank
from inpaint.data.holes import Hole, Panels, Sometimes
from inpaint.data.inspection import Look
from inpaint.data.panels import Grid, find_panels
from inpaint.data.rows import Manifest
from inpaint.data.sources import Captions, FolderSource
from inpaint.data.storage import absolute
from inpaint.errors import InpaintError
from inpaint.models.base import read_base_info
from inpaint.models.lora import LoraSettings
from inpaint.paint.batch import PaintSettings
from inpaint.paint.crop import working_shape
from inpaint.recipes.latent import MULTIPLE
from inpaint.recipes.lora import MANY_HOLES, LoraRecipe
from inpaint.recipes.lora_command import LoraCommand
from inpaint.stopping import StopToken
from inpaint.train.checkpoint import CHECKPOINTS, CheckpointStore
from inpaint.train.run import run
from inpaint.train.settings import ValidationSettings

ASPECTS = 1.05
"""How much composites of one training may differ in their aspect, beside what rounding does: more would cut into
panels."""


@dataclass(frozen=True, kw_only=True)
class PanelLora(LoraRecipe):
    """A LoRA on composites: `data` is a folder of pictures, each with its caption in a text file of its name. Some
    panels are the hole, or (`full_hole_probability`) the whole composite, which is plain in-context training."""

    title = "panels"

    grid: Grid = Grid()
    """Of each composite."""
    max_masked_panels: int = 2
    """1 to this many panels are painted."""
    full_hole_probability: float = 0.3
    bank: Bank = MANY_HOLES

    def source(self, data: str) -> FolderSource:
        return FolderSource(path=data, captions=Captions.REQUIRED)

    def hole(self) -> Hole:
        return Sometimes(Panels(grid=self.grid, most=self.max_masked_panels), self.full_hole_probability)

    def look(self) -> Look:
        return partial(find_panels, grid=self.grid)

    def check(self) -> None:
        super().check()
        _ = self.hole()
        if self.aspect_buckets:
            raise InpaintError("aspect_buckets: composites of one training are all of one aspect: leave it out")
        if not read_base_info(self.base, self.revision).is_xl:
            raise InpaintError(
                f"base {self.base}: is not SDXL, which panels are learned on: give SDXL or SDXL inpainting, a "
                "folder, a hub id or a file, or toy-sdxl"
            )

    def bind(self, rows: Manifest) -> Self:
        """Composites of another aspect than 1 are seen in their own, at the same area."""
        bound = super().bind(rows)
        if isinstance(bound.resolution, tuple):
            return bound
        assert bound.resolution is not None, "bound"
        size, multiple = bound.resolution, bound.size_multiple()
        height, width = (int(np.median(rows.table[side])) for side in ("height", "width"))
        return replace(bound, resolution=working_shape(height, width, size=size, multiple=multiple))

    def check_rows(self, rows: Manifest) -> None:
        super().check_rows(rows)
        heights, widths = (rows.table[side].to_numpy().astype(float) for side in ("height", "width"))
        read = self.read_settings()
        wide = widths / heights * read.height / read.width
        other = np.flatnonzero(np.maximum(wide, 1 / wide) > ASPECTS + MULTIPLE / min(read.height, read.width))
        if len(other):
            row = int(other[0])
            raise InpaintError(
                f"{rows.table['id'][row]} has {int(widths[row])} x {int(heights[row])} pixels, the composites are "
                f"trained on at {read.width} x {read.height}, and cropping would cut into panels: bring all "
                f"{len(other)} of this kind to one aspect, or train them by themselves"
            )

    def paint_settings(self, adapter: str) -> PaintSettings:
        hidden = tuple(range(self.grid.count))[-self.max_masked_panels :]
        return replace(super().paint_settings(adapter), panels=hidden, grid=str(self.grid))


@dataclass(frozen=True, kw_only=True)
class TrainPanelLora(LoraCommand):
    """Settings of `python -m ray_jobs.train_panel_lora`."""

    data_dir: str
    """Folder (or URL) of composites: `sheet1.png` (or jpg) and its caption `sheet1.txt`."""
    output_dir: str
    """Folder (or URL) of the run; the adapter is written to its `adapters/panels/`."""
    model_id: str = "stabilityai/stable-diffusion-xl-base-1.0"
    """The base: SDXL of 4 channels, or SDXL inpainting of 9; a folder, a hub id, a `.safetensors` file, `toy-sdxl`."""
    num_epochs: float = 100
    """Passes over the composites."""
    batch_size: int = 4
    """Composites per optimizer step, over all workers."""
    learning_rate: float = 1e-4
    lora_rank: int = 64
    lora_alpha: float = 64
    """The LoRA's update is scaled by alpha / rank."""
    lora_dropout: float = 0.1
    image_size: int = 1024
    """Side, in pixels, of the square whose area composites are seen at."""
    mask_probability: float = 0.7
    """Share of samples in which panels are painted; in the others it is the whole composite."""
    max_masked_panels: int = 2
    """1 to this many panels are painted."""
    bank: Bank = MANY_HOLES
    save_every: int = 1000
    """Optimizer steps between checkpoints."""
    resume_from_checkpoint: str | None = None
    """`latest`, the run's folder or its newest checkpoint: go on with the run in `output_dir`, exactly."""
    seed: int = 42
    grid: str = "2x2"
    """Rows x columns of each composite: 2x2, 1x2, 2x1, 1x4, 3x3, ..."""
    train_text_encoders: bool = False
    """Whether both text encoders get LoRA layers too."""
    text_encoder_learning_rate: float = 5e-5
    caption_dropout: float = 0.05
    """Share of samples with an empty prompt, for classifier-free guidance."""
    max_micro_batch: int = 1
    """Most composites per forward on one worker; what remains of the batch is accumulated."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward: less memory, about a third more time."""
    validation: ValidationSettings = field(default_factory=ValidationSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.mask_probability <= 1:
            raise InpaintError(f"mask_probability {self.mask_probability}: give a share of the samples, 0 to 1")
        for name in ("batch_size", "lora_rank", "image_size", "save_every"):
            if getattr(self, name) < 1:
                raise InpaintError(f"{name} {getattr(self, name)}: give at least 1")
        if self.num_epochs <= 0:
            raise InpaintError(f"num_epochs {self.num_epochs}: give more than 0")
        _ = Panels(grid=Grid.parse(self.grid), most=self.max_masked_panels)

    def recipe(self) -> PanelLora:
        """What is run."""
        return PanelLora(
            data=self.data_dir,
            output=self.output_dir,
            base=self.model_id,
            resolution=self.image_size,
            grid=Grid.parse(self.grid),
            max_masked_panels=self.max_masked_panels,
            full_hole_probability=1 - self.mask_probability,
            caption_dropout=self.caption_dropout,
            unet_learning_rate=self.learning_rate,
            text_encoder_learning_rate=self.text_encoder_learning_rate,
            resume=self.resume_from_checkpoint is not None,
            lora=LoraSettings(
                rank=self.lora_rank,
                alpha=self.lora_alpha,
                dropout=self.lora_dropout,
                text_encoder=self.train_text_encoders,
            ),
            train=self.train_settings(
                epochs=self.num_epochs,
                global_batch=self.batch_size,
                checkpoint_every=self.save_every * self.batch_size,
            ),
            **self.run_settings(),
        )


def train_panels(config: TrainPanelLora, *, stop: StopToken | None = None) -> str:
    """Train; returns the adapter's folder. Raises InpaintError, as `inpaint.run`."""
    _check_resume(config)
    (folder,) = run(config.recipe(), stop=stop)
    return folder


def _check_resume(config: TrainPanelLora) -> None:
    """What is named must be what is gone on with: the newest checkpoint in `output_dir`."""
    named = config.resume_from_checkpoint
    if named is None or named == "latest":
        return
    output = absolute(config.output_dir)
    names = CheckpointStore(f"{output}/{CHECKPOINTS}").names()
    newest = [str(PurePosixPath(output) / CHECKPOINTS / names[-1])] if names else []
    if absolute(named) not in (output, *newest):
        raise InpaintError(
            f"resume_from_checkpoint {named}: a run goes on from its newest checkpoint: give `latest`, with the run's "
            "folder as output_dir"
        )
