"""What every LoRA on a Stable Diffusion base shares: the base, what is trained of it, the adapter that comes out."""

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from inpaint.data.bank import Bank
from inpaint.data.rows import Manifest
from inpaint.device import memory_format
from inpaint.diffusion.objective import LossSettings
from inpaint.export.adapter_folder import save_adapter
from inpaint.export.card import write_card
from inpaint.export.kohya_file import save_kohya
from inpaint.models.adapter import AdapterCard, adapter_from, check_adapter
from inpaint.models.base import read_base_info
from inpaint.models.lora import LoraSettings, inject_lora, lora_parameters
from inpaint.models.prompts import add_tokens, token_parameters
from inpaint.paint.batch import PaintSettings, paint_manifest
from inpaint.paint.generate import generate
from inpaint.paint.request import SamplingSettings
from inpaint.progress import ProgressBar
from inpaint.recipes.card_dataset import dataset_of
from inpaint.recipes.latent import LatentRecipe, Preset
from inpaint.train.latent import LatentInpainting
from inpaint.train.objective import ParameterGroup
from inpaint.train.recipe import Trained
from inpaint.train.settings import Precision, TrainSettings, ValidationSettings, may_change

MANY_HOLES = Bank(holes=16)
"""Where each image comes a hundred times."""
_ON_GPUS: dict[str, Any] = {
    "lora": LoraSettings(rank=16),
    "train": TrainSettings(samples=24_000, global_batch=16, precision=Precision.BF16),
    "validation": ValidationSettings(share=0.05),
}
LORA_PRESETS: dict[Preset, dict[str, Any]] = {
    "toy": {
        "unet_learning_rate": 2e-3,
        "text_encoder_learning_rate": 2e-3,
        "token_learning_rate": 1e-2,
        "caption_dropout": 0.2,
        "flip_probability": 0.5,
        "lora": LoraSettings(rank=6),
        "loss": LossSettings(debiased=True, noise_offset=0.05),
        "train": TrainSettings(samples=14_400, global_batch=16, max_micro_batch=8, checkpoint_every=4800),
    },
    "sd15": {**_ON_GPUS, "base": "stable-diffusion-v1-5/stable-diffusion-inpainting"},
    "sdxl": {
        **_ON_GPUS,
        "base": "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        "train": replace(_ON_GPUS["train"], max_micro_batch=2, gradient_checkpointing=True),
    },
}
"""What suits each family of bases. toy: four minutes per category on two cores. sd15: kohya's and diffusers' usual rank
and rates for SD 1.5. sdxl: the same for 1024 px."""

KOHYA = "kohya"
"""Folder of an adapter's folder."""


@dataclass(frozen=True, kw_only=True)
class LoraRecipe(LatentRecipe):
    """A LoRA on a base's U-Net and text encoders, with tokens of its own where the recipe adds some."""

    title = "lora"
    presets = LORA_PRESETS

    lora: LoraSettings = LoraSettings()
    unet_learning_rate: float = 1e-4
    text_encoder_learning_rate: float = 5e-5
    token_learning_rate: float = 1e-3
    card_samples: int = may_change(8)
    """Pictures for the adapter's model card; 0: none."""

    kohya: bool = may_change(False)
    """Write the adapter for A1111 and ComfyUI, too: one file, and one per token, into its folder `kohya`."""

    def init_word(self, category: str) -> str:
        """What a category's token starts from."""
        return "product"

    def paint_settings(self, adapter: str) -> PaintSettings:
        """How the card's samples are painted with the exported adapter."""
        return PaintSettings(base=self.base, adapter=adapter, sampling=SamplingSettings(**asdict(self.prompts)))

    def shown(self, rows: Manifest) -> Manifest:
        """Rows as they are painted for the card."""
        return rows

    def text_alone(self, rows: Manifest) -> str | None:
        """A prompt, where the adapter is for pictures from text alone; None where it is for holes."""
        return None

    def objective(self, device: torch.device) -> LatentInpainting:
        settings = self.train
        base = self.load(self.compute_dtype)
        inject_lora(base, self.lora, seed=settings.seed)
        if self.tokens():
            add_tokens(base, {token: self.init_word(category) for category, token in self.tokens().items()})
        base.to(device)
        base.unet.to(memory_format=memory_format(device))
        if settings.gradient_checkpointing:
            base.unet.enable_gradient_checkpointing()
            for encoder in base.text_encoders:
                encoder.gradient_checkpointing_enable()
        lora = lora_parameters(base)
        unet = {name: p for name, p in lora.items() if name.startswith("unet.")}
        encoders = {name: p for name, p in lora.items() if name not in unet}
        groups = [
            ParameterGroup(self.unet_learning_rate, unet),
            ParameterGroup(self.text_encoder_learning_rate, encoders),
            ParameterGroup(self.token_learning_rate, token_parameters(base)),
        ]
        groups = [group for group in groups if group.parameters]
        return LatentInpainting(
            base,
            groups,
            seed=settings.seed,
            loss=self.loss,
            precision=settings.precision,
            prompts=self.prompts,
            texts_once=not encoders and not self.tokens() and settings.zero_stage < 3,
        )

    def export_folder(self, part: str) -> str:
        return f"{self.output}/adapters/{part}"

    def card(self, trained: Trained) -> AdapterCard:
        """What is told of the adapter."""
        read = self.read_settings()
        height, width = read.height, read.width
        return AdapterCard(
            base=self.base,
            base_revision=str(self.revision),
            tokens=dict(self.tokens()),
            prompt_format=self.prompt_format(),
            resolution=height if height == width else [height, width],
            rank=self.lora.rank,
            alpha=self.lora.scaled_alpha,
            samples=trained.progress.samples,
            manifest=trained.progress.manifest,
            metrics=trained.progress.metrics,
            dataset=dataset_of(trained.rows, read),
        )

    def export(self, trained: Trained, folder: Path) -> None:
        adapter = adapter_from(trained.parameters, self.card(trained))
        info = read_base_info(self.base, self.revision)
        check_adapter(adapter, info)
        save_adapter(folder, adapter)
        if self.kohya:
            save_kohya(folder / KOHYA, adapter, info, trained.name)
        samples = self._samples(trained.rows, folder) if self.card_samples else []
        write_card(folder, adapter, info, samples, text_alone=self.text_alone(trained.rows))

    def _samples(self, rows: Manifest, adapter: Path) -> list[np.ndarray]:
        """Painted with the adapter: comparison strips of a few rows, evenly from all of them, or pictures from text."""
        settings, prompt = self.paint_settings(str(adapter)), self.text_alone(rows)
        with tempfile.TemporaryDirectory() as folder, ProgressBar("samples for the card") as bar:
            if prompt is not None:
                generate([prompt], settings, folder, n=self.card_samples, on_progress=bar.show)
                return [np.asarray(Image.open(path)) for path in sorted(Path(folder).rglob("*.png"))]
            count = min(self.card_samples, len(rows))
            chosen = self.shown(rows.select(np.arange(count) * len(rows) // count))
            paint_manifest(chosen, settings, folder, on_progress=bar.show)
            return [np.asarray(Image.open(path)) for path in sorted((Path(folder) / "comparisons").rglob("*.png"))]
