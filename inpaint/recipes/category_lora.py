"""Category LoRA: a background style per product category, the product untouched."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, Self

import pyarrow.compute as pc
import tyro

from inpaint.data.rows import Manifest
from inpaint.data.sources import CsvSource
from inpaint.diffusion.objective import LossSettings
from inpaint.errors import InpaintError
from inpaint.models.base import read_base_info
from inpaint.models.lora import LoraSettings
from inpaint.recipes.lora import LoraRecipe
from inpaint.train.settings import Precision, TrainSettings, ValidationSettings, may_change

PROMPT_FORMAT = "{token} background, {prompt}"
Preset = Literal["toy", "sd15", "sdxl"]


class Adapters(StrEnum):
    """How many adapters are trained."""

    SHARED = "shared"
    PER_CATEGORY = "per-category"


@dataclass(frozen=True, kw_only=True)
class CategoryLora(LoraRecipe):
    """Settings of `python -m ray_jobs.train_category_lora`. `data` is a CSV with the columns input, mask, output,
    prompt, category."""

    preset: Preset = may_change("toy")
    """Whose defaults the other settings have; unset: the one that suits the base, toy for those below 256 px."""
    categories: tuple[str, ...] = ()
    """Categories that may occur in the CSV; rows of others go to the quarantine. Empty: any."""
    init_words: Mapping[str, str] = field(default_factory=dict)
    """Words whose mean embedding starts a category's token; `product` where not given."""
    adapters: Adapters = Adapters.SHARED
    """One adapter for all categories, or one for each, trained side by side where the cluster has room."""

    def source(self, data: str) -> CsvSource:
        return CsvSource(path=data, categories=self.categories or None, category_required=True)

    def bind(self, rows: Manifest) -> Self:
        return replace(super().bind(rows), categories=rows.categories)

    def parts(self, rows: Manifest) -> dict[str, Manifest]:
        categories = rows.categories
        _check_categories(rows)
        if self.adapters is Adapters.SHARED:
            return {"shared" if len(categories) > 1 else categories[0]: rows}
        return {category: rows.select(category) for category in categories}

    def run_folder(self, part: str) -> str:
        return self.output if self.adapters is Adapters.SHARED else f"{self.output}/{part}"

    def tokens(self) -> Mapping[str, str]:
        return {category: category for category in self.categories}

    def init_word(self, category: str) -> str:
        return self.init_words.get(category, "product")

    def prompt_format(self) -> str:
        return PROMPT_FORMAT


def _check_categories(rows: Manifest) -> None:
    """A category is a token, which is found wherever its letters stand, and the name of a folder."""
    for category in rows.categories:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", category) or category in ("adapters", "shared", "data"):
            raise InpaintError(f"category {category!r}: name it with letters, digits, '_', '-' and '.', as in CDP_FOOD")
        number = re.fullmatch(r"(.+)_[1-9][0-9]*", category)
        if number is not None and number[1] in rows.categories:
            raise InpaintError(f"category {category!r} reads as a further vector of {number[1]!r}'s token: rename it")
        prompts = rows.table["prompt"]
        found = prompts.filter(pc.match_substring(prompts, category, ignore_case=True))
        if len(found):
            raise InpaintError(
                f"category {category!r} becomes a token and would be found in the prompt {str(found[0])!r}: give it a "
                f"name that is no word, such as CDP_{category.upper()}"
            )


def defaults(*, preset: Preset | None = None, base: str = "toy") -> CategoryLora:
    """The command's, of a preset or of the one that suits the base."""
    if preset is None:
        info = read_base_info(base)
        preset = "sdxl" if info.is_xl else "sd15" if info.default_size >= 256 else "toy"
    return preset_of(preset, data=tyro.MISSING, output=tyro.MISSING)


def preset_of(name: Preset, *, data: str, output: str) -> CategoryLora:
    """The documented defaults of a preset.

    toy: four minutes per category on two cores. sd15: kohya's and diffusers' usual rank and rates for SD 1.5. sdxl:
    the same for 1024 px.

    Raises:
        InpaintError: an unknown preset.
    """
    on_gpus = TrainSettings(samples=24_000, global_batch=16, precision=Precision.BF16)
    held_out = ValidationSettings(share=0.05)
    chosen: dict[Preset, dict[str, Any]] = {
        "toy": {
            "unet_learning_rate": 2e-3,
            "text_encoder_learning_rate": 2e-3,
            "token_learning_rate": 1e-2,
            "caption_dropout": 0.2,
            "lora": LoraSettings(rank=6),
            "loss": LossSettings(debiased=True, noise_offset=0.05),
            "train": TrainSettings(samples=14_400, global_batch=16, max_micro_batch=8, checkpoint_every=4800),
        },
        "sd15": {
            "base": "stable-diffusion-v1-5/stable-diffusion-inpainting",
            "lora": LoraSettings(rank=16),
            "train": on_gpus,
            "validation": held_out,
        },
        "sdxl": {
            "base": "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
            "lora": LoraSettings(rank=16),
            "train": replace(on_gpus, max_micro_batch=2, gradient_checkpointing=True),
            "validation": held_out,
        },
    }
    if name not in chosen:
        raise InpaintError(f"preset {name!r}: give toy, sd15 or sdxl")
    return CategoryLora(data=data, output=output, preset=name, **chosen[name])
