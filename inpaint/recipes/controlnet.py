"""ControlNet: a base learns to follow pictures of edges or depth."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from diffusers import ControlNetModel

from inpaint.data.sample import ReadSettings
from inpaint.data.sources import CsvSource, FolderSource, Source
from inpaint.device import memory_format
from inpaint.diffusion.objective import LossSettings
from inpaint.models.base import Base
from inpaint.models.controlnet import load_controlnet, new_controlnet
from inpaint.models.locate import locate_controlnet
from inpaint.recipes.latent import LatentRecipe, Preset
from inpaint.train.controlled import ControlledInpainting
from inpaint.train.recipe import Trained
from inpaint.train.settings import Precision, TrainSettings, ValidationSettings
from inpaint.vision.control import ControlKind, ControlSettings, load_control

_ON_GPUS: dict[str, Any] = {
    "learning_rate": 1e-5,
    "train": TrainSettings(samples=200_000, global_batch=32, precision=Precision.BF16, gradient_checkpointing=True),
    "validation": ValidationSettings(share=0.01),
}
PRESETS: dict[Preset, dict[str, Any]] = {
    "toy": {
        "learning_rate": 8e-4,
        "flip_probability": 0.5,
        "full_hole_probability": 0.0,
        "loss": LossSettings(debiased=True, timestep_shift=2.0, kept_weight=0.3),
        "train": TrainSettings(
            samples=14_400,
            global_batch=8,
            max_micro_batch=8,
            zero_stage=0,
            ema_halflife=400,
            checkpoint_every=1600,
        ),
    },
    "sd15": {**_ON_GPUS, "base": "stable-diffusion-v1-5/stable-diffusion-inpainting"},
    "sdxl": {
        **_ON_GPUS,
        "base": "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        "train": replace(_ON_GPUS["train"], max_micro_batch=2),
    },
}
"""toy: the shipped one's, 13 minutes of one core. sd15, sdxl: the paper's rate; a few days on one GPU."""


@dataclass(frozen=True, kw_only=True)
class TrainControlNet(LatentRecipe):
    """Settings of `python -m ray_jobs.train_controlnet`. `data` is a CSV with the columns output and prompt, perhaps
    input and mask; or a folder of pictures, each with its caption in a text file of its name."""

    title = "ControlNet"
    presets = PRESETS

    control: Annotated[ControlSettings, tyro.conf.arg(name="")] = ControlSettings(control=ControlKind.EDGES)
    start_from: str | None = None
    """A ControlNet that is trained further: a folder, a hub id, or `toy-edges`; unset: a new one."""
    learning_rate: float = 1e-5

    def source(self, data: str) -> Source:
        return CsvSource(path=data) if data.lower().endswith(".csv") else FolderSource(path=data)

    def read_settings(self) -> ReadSettings:
        return replace(super().read_settings(), keeps_image=True)

    def objective(self, device: torch.device) -> ControlledInpainting:
        settings = self.train
        base = self.load(self.compute_dtype)
        controlnet = self.beginning(base).float()
        base.to(device)
        for module in (base.unet, controlnet.to(device)):
            module.to(memory_format=memory_format(device))
            if settings.gradient_checkpointing:
                module.enable_gradient_checkpointing()
        return ControlledInpainting(
            base,
            controlnet,
            load_control(self.control, device),
            learning_rate=self.learning_rate,
            seed=settings.seed,
            loss=self.loss,
            precision=settings.precision,
            prompts=self.prompts,
            texts_once=settings.zero_stage < 3,
        )

    def beginning(self, base: Base) -> ControlNetModel:
        """What is trained, as it begins. Raises InpaintError for one that does not fit the base."""
        if self.start_from is not None:
            return load_controlnet(self.start_from, base).train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.train.seed)
            return new_controlnet(base)

    def check(self) -> None:
        super().check()
        if self.start_from is not None:
            locate_controlnet(self.start_from)

    def export_folder(self, part: str) -> str:
        return f"{self.output}/controlnet"

    def export(self, trained: Trained, folder: Path) -> None:
        controlnet = new_controlnet(self.load(torch.float32))
        controlnet.load_state_dict(trained.parameters)
        controlnet.half().save_pretrained(folder)
