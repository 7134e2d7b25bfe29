"""A workload of one's own, as the guide in docs/architecture.md says: photos with captions in, a style LoRA out."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from inpaint.data.holes import Feathered, Hole
from inpaint.data.sources import Captions, FolderSource
from inpaint.models.lora import LoraSettings
from inpaint.recipes.lora import LoraRecipe


@dataclass(frozen=True, kw_only=True)
class HalfHole(Hole):
    """One half of the picture is painted."""

    half: Literal["lower", "right"] = "lower"
    """Which."""

    def draw(self, own: np.ndarray | None, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        hole = np.zeros((height, width), dtype=np.uint8)
        hole[height // 2 :] = 255
        return hole if self.half == "lower" else hole.T


@dataclass(frozen=True, kw_only=True)
class StyleLora(LoraRecipe):
    """`data` is a folder of images, each with a caption beside it."""

    title = "style"

    tag: str = "inthisstyle"
    """Stands at the beginning of every prompt."""
    half: Literal["lower", "right"] = "lower"
    """What is painted in training."""
    lora: LoraSettings = LoraSettings(rank=2, text_encoder=False)
    """On the U-Net alone."""

    def source(self, data: str) -> FolderSource:
        return FolderSource(path=data, captions=Captions.REQUIRED)

    def prompt_format(self) -> str:
        return f"{self.tag}, {{prompt}}"

    def hole(self) -> Hole:
        return Feathered(HalfHole(half=self.half))
