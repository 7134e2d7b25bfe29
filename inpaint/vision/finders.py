"""Which finder: settings, and the one that a model's own configuration asks for."""

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import AutoConfig

from inpaint.device import parse_device
from inpaint.errors import InpaintError
from inpaint.models.base import DTYPES
from inpaint.vision.clipseg import ClipSegFinder
from inpaint.vision.finder import Finder
from inpaint.vision.grounding_dino import GroundedSamFinder
from inpaint.vision.pretrained import TOYS, absolute_name, loaded, revision
from inpaint.vision.sam3 import Sam3Finder

FINDERS = {
    "grounding-dino": "IDEA-Research/grounding-dino-tiny",
    "clipseg": "CIDAS/clipseg-rd64-refined",
    "sam3": "facebook/sam3",
    "toy": str(TOYS / "clipseg"),
}
"""Short names of finders."""
SEGMENTERS = {"sam": "facebook/sam-vit-base", "sam-huge": "facebook/sam-vit-huge"}
"""Short names of what makes masks of boxes."""
GROUNDING_DINO, CLIPSEG, SAM3 = "grounding-dino", "clipseg", "sam3"
KINDS = (GROUNDING_DINO, CLIPSEG, SAM3)
"""Supported models, as their configurations call them."""


@dataclass(frozen=True, kw_only=True)
class FinderSettings:
    """Which finder, and how sure it must be."""

    finder: str = "grounding-dino"
    """A Grounding DINO, a CLIPSeg or a SAM 3: its hub id, a folder that transformers saved, or `grounding-dino`,
    `clipseg`, `sam3`, `toy` (a small CLIPSeg that knows the toy world)."""
    segmenter: str = "sam"
    """What makes masks of Grounding DINO's boxes: a SAM's hub id or folder, or `sam`, `sam-huge`."""
    threshold: float | None = None
    """Least score of a product, in (0, 1), where its class has none of its own; default: 0.25 of Grounding DINO, 0.4
    of CLIPSeg's heat, 0.5 of SAM 3."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the weights; fp16 is for GPUs."""

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise InpaintError(f"threshold {self.threshold} is not between 0 and 1")

    @property
    def model(self) -> str:
        """Hub id or absolute path of the finder."""
        return absolute_name(FINDERS.get(self.finder, self.finder))

    @property
    def mask_model(self) -> str:
        """The same of the segmenter."""
        return absolute_name(SEGMENTERS.get(self.segmenter, self.segmenter))

    def kind(self) -> str:
        """The model's type, as its configuration says. Raises InpaintError for one that is no finder."""
        kind = str(loaded(self.model, AutoConfig.from_pretrained).model_type)
        if kind not in KINDS:
            raise InpaintError(f"finder {self.finder}: is a {kind} model; give a Grounding DINO, a CLIPSeg or a SAM 3")
        return kind

    def revisions(self) -> dict[str, str]:
        """Model -> the commit on the hub, or a hash over the folder's files. Raises InpaintError."""
        names = [self.model, self.mask_model] if self.kind() == GROUNDING_DINO else [self.model]
        return {name: revision(name) for name in names}


def load_finder(settings: FinderSettings, device: str | torch.device = "cpu") -> Finder:
    """The finder with its weights. Raises InpaintError for what is not there, is no finder, or lacks a package."""
    kind, dtype, where = settings.kind(), DTYPES[settings.precision], parse_device(device)
    if kind == GROUNDING_DINO:
        return GroundedSamFinder.load(settings.model, settings.mask_model, dtype, where, settings.threshold)
    if kind == SAM3:
        return Sam3Finder.load(settings.model, dtype, where, settings.threshold)
    return ClipSegFinder.load(settings.model, dtype, where, settings.threshold)
