"""DDPM inpainting from scratch: a folder of images in, an inpainting model of one's own out, no pretrained weights.

A run's folder holds `model.json` (what the model is), `checkpoints/` (weights, optimizer and EMA) and at the end
`model.safetensors`: it can be painted with while it is still training.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import safetensors
import safetensors.torch
import torch
import tyro

from inpaint.data.holes import RandomShapes, Sometimes
from inpaint.data.rows import Manifest
from inpaint.data.sample import ReadSettings
from inpaint.data.sources import Captions, FolderNames, FolderSource
from inpaint.data.storage import read_file, write_file
from inpaint.device import choose_device
from inpaint.diffusion.ddpm import Noise, NoiseSettings
from inpaint.diffusion.objective import LossSettings
from inpaint.diffusion.unet import MaskedUNet, UNetSettings
from inpaint.diffusion.unet import preset as unet_preset
from inpaint.errors import InpaintError
from inpaint.paint.ddpm_painter import DdpmPainter, ModelCard
from inpaint.train.checkpoint import CHECKPOINTS, CheckpointStore
from inpaint.train.pixel import PixelInpainting
from inpaint.train.recipe import Recipe, Trained
from inpaint.train.settings import Precision, RateSchedule, TrainSettings, may_change

MODEL, WEIGHTS = "model.json", "model.safetensors"
FROM_SCRATCH = TrainSettings(
    epochs=2000,
    global_batch=32,
    max_micro_batch=8,
    precision=Precision.BF16,
    schedule=RateSchedule.CONSTANT,
    warmup=0.0,
    weight_decay=0.0,
    beta2=0.999,
    ema_halflife=20_000,
    checkpoint_every=20_000,
)
"""Constant learning rate and a moving average, as Ho 2020: so a run can be continued with more epochs than it began
with."""


@dataclass(frozen=True, kw_only=True)
class TrainDdpm(Recipe):
    """Settings of `python -m ray_jobs.train_ddpm`. `data` is a folder of images, with all folders below it."""

    title = "ddpm"

    image_size: int = 128
    """Side of the training images in pixels; the short side is resized to it, and the middle square is used."""
    unet: UNetSettings = UNetSettings()
    """The network; `--image-size` sets the preset of that size."""
    noise: NoiseSettings = NoiseSettings()
    """Noise schedule, and what is predicted."""
    loss: LossSettings = LossSettings()
    holes: RandomShapes = RandomShapes()
    """What is to be painted in training."""
    full_hole_probability: float = 0.0
    """Share of samples whose hole is the whole image, so that the model can paint whole images, too."""
    flip_probability: float = 0.5
    """Share of samples mirrored left to right; 0 where images carry text."""
    classes: bool = False
    """Condition on a class: the name of the folder that an image lies in."""
    class_names: tuple[str, ...] = ()
    """With `classes`: their names, in the order of their labels; empty: all that occur."""
    class_dropout: float = 0.1
    """Share of samples whose class is not told, for classifier-free guidance."""
    learning_rate: float = 1e-4
    checkpoint_epochs: float | None = may_change(None)
    """Epochs between checkpoints; where given, it replaces `train.checkpoint_every`."""
    train: TrainSettings = FROM_SCRATCH

    def __post_init__(self) -> None:
        if self.image_size % self.unet.multiple:
            raise InpaintError(
                f"image_size {self.image_size}: this network needs a multiple of {self.unet.multiple} pixels"
            )
        if self.checkpoint_epochs is not None and self.checkpoint_epochs <= 0:
            raise InpaintError(f"checkpoint_epochs {self.checkpoint_epochs}: give more than 0")

    def check(self) -> None:
        self.loss.check_kept(denoised=False)
        if self.train.gradient_checkpointing:
            raise InpaintError("train.gradient_checkpointing: not for this U-Net; give a smaller max_micro_batch")

    def source(self, data: str) -> FolderSource:
        names = FolderNames.LABEL if self.classes else FolderNames.NOTHING
        return FolderSource(path=data, captions=Captions.UNREAD, folder_names=names)

    def bind(self, rows: Manifest) -> Self:
        names = (self.class_names or rows.labels) if self.classes else ()
        if self.classes and not names:
            raise InpaintError(f"{self.data}: classes are names of folders, and all images lie in the folder itself")
        train = self.train
        if self.checkpoint_epochs is not None:
            train = replace(train, checkpoint_every=max(1, round(self.checkpoint_epochs * len(rows))))
        return replace(self, class_names=names, unet=replace(self.unet, classes=len(names)), train=train)

    def check_rows(self, rows: Manifest) -> None:
        super().check_rows(rows)
        names = self.class_names
        for label in sorted(set(rows.labels) - set(names)):
            raise InpaintError(f"{self.data}: folder {label!r} is no class: class_names are {', '.join(names)}")

    def read_settings(self) -> ReadSettings:
        return ReadSettings(
            height=self.image_size,
            width=self.image_size,
            flip_probability=self.flip_probability,
            hole=Sometimes(self.holes, self.full_hole_probability),
            caption_dropout=self.class_dropout,
        )

    def card(self) -> ModelCard:
        """What the model is; of a bound recipe."""
        return ModelCard(image_size=self.image_size, unet=self.unet, noise=self.noise, classes=self.class_names)

    def objective(self, device: torch.device) -> PixelInpainting:
        torch.manual_seed(self.train.seed)
        return PixelInpainting(
            MaskedUNet(self.unet).to(device),
            self.noise,
            classes=self.class_names,
            learning_rate=self.learning_rate,
            seed=self.train.seed,
            loss=self.loss,
            precision=self.train.precision,
        )

    def begin(self, folder: Path) -> None:
        self._write_card(folder, {})

    def _write_card(self, folder: Path, more: dict[str, int]) -> None:
        # Whole or not at all, for it may be read at any time.
        write_file(folder, MODEL, json.dumps({**self.card().to_json(), **more}, indent=1).encode() + b"\n")

    def export_folder(self, part: str) -> str:
        return self.output

    def export(self, trained: Trained, folder: Path) -> None:
        write_file(folder, WEIGHTS, safetensors.torch.save(trained.parameters))
        # Last: who reads it finds the weights. A run that goes on afterwards is painted with its checkpoints.
        self._write_card(folder, {"exported_after": trained.ended})


def defaults(*, image_size: int = 128) -> TrainDdpm:
    """The command's, of an image size."""
    return preset_of(image_size, data=tyro.MISSING, output=tyro.MISSING)


def preset_of(image_size: int, *, data: str, output: str) -> TrainDdpm:
    """The defaults for images of 32, 64, 128, 256 or 512 pixels.

    Raises:
        InpaintError: another size.
    """
    unet = unet_preset(image_size)
    config = TrainDdpm(data=data, output=output, image_size=image_size, unet=unet)
    if image_size == 32:
        # Small enough for CPUs, where bf16 is slower than fp32.
        small = replace(FROM_SCRATCH, precision=Precision.FP32, max_micro_batch=16)
        noise = NoiseSettings(noise=Noise.COSINE, prediction_type="v_prediction")
        loss = LossSettings(debiased=True)
        return replace(config, noise=noise, loss=loss, train=small, learning_rate=1.5e-3)
    if image_size == 64:
        return replace(config, learning_rate=2e-4)
    return config


def load_ddpm(run: str, *, device: str | torch.device | None = None, max_batch: int = 16) -> DdpmPainter:
    """A painter with the newest good weights of a run (the moving average, where one is kept).

    Args:
        run: the `output` of a training, finished or not: a folder or an object-store URL.
        device: default: a GPU where there is one.

    Raises:
        InpaintError: no model or no weights there yet.
    """
    found = read_file(run, MODEL)
    if found is None:
        raise InpaintError(f"{run} holds no {MODEL}: give the output folder of `python -m ray_jobs.train_ddpm`")
    try:
        card = dict(json.loads(found))
    except (ValueError, TypeError) as error:
        raise InpaintError(f"{run}/{MODEL} is damaged ({error}): train again, or restore it") from error
    exported_after = card.pop("exported_after", -1)
    store, exported = CheckpointStore(f"{run}/{CHECKPOINTS}"), read_file(run, WEIGHTS)
    progress = store.progress()
    if exported is not None and (progress is None or exported_after >= progress.samples):
        try:
            weights = safetensors.torch.load(exported)
        except safetensors.SafetensorError as error:
            raise InpaintError(f"{run}/{WEIGHTS} is damaged ({error}): run the training again with --resume") from error
    else:  # it has gone on since, or has not ended yet
        loaded = store.latest()
        if loaded is None:
            raise InpaintError(
                f"{run} holds no checkpoint yet: wait for its first one, or train with a smaller interval"
            )
        state, _ = loaded
        weights = state.get("ema", state["trained"])
    return DdpmPainter(ModelCard.from_json(card), weights, device=choose_device(device), max_batch=max_batch)
