"""What LoRAs of pictures without masks share: text to image, or random holes on bases that are made for inpainting."""

from dataclasses import dataclass, replace
from typing import Self

from inpaint.data.bank import Bank
from inpaint.data.holes import Hole, HoleKind, RandomShapes, Sometimes, WholeImage
from inpaint.data.rows import Manifest
from inpaint.models.base import read_base_info
from inpaint.recipes.lora import MANY_HOLES, LoraRecipe

RANDOM_HOLES = RandomShapes(kinds=(HoleKind.RECTANGLES, HoleKind.CIRCLES), areas=((0.1, 0.6),), most_shapes=2)
"""What is painted on bases that are made for it."""


@dataclass(frozen=True, kw_only=True)
class PictureLora(LoraRecipe):
    """A LoRA that makes pictures from text, and on inpainting bases paints them into scenes."""

    random_holes: bool | None = None
    """Paint random holes, so that what is learned can be painted into a scene, instead of whole pictures; unset: on
    bases that are made for inpainting."""

    bank: Bank = MANY_HOLES

    def hole(self) -> Hole:
        return Sometimes(RANDOM_HOLES, self.full_hole_probability) if self.random_holes else WholeImage()

    def text_alone(self, rows: Manifest) -> str | None:
        return None if self.random_holes else self.read_settings().prompt_of(rows.row(0))

    def bind(self, rows: Manifest) -> Self:
        bound = super().bind(rows)
        if bound.random_holes is not None:
            return bound
        return replace(bound, random_holes=read_base_info(bound.base, bound.revision).in_channels == 9)
