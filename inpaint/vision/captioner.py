"""Captions of photos: the Protocol, and BLIP behind it.

Source: Li et al. 2022, BLIP; `BlipForConditionalGeneration` of transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoTokenizer, BlipForConditionalGeneration

from inpaint.device import parse_device
from inpaint.errors import InpaintError
from inpaint.models.base import DTYPES
from inpaint.vision.pretrained import TOYS, absolute_name, loaded

CAPTIONERS = {
    "blip": "Salesforce/blip-image-captioning-base",
    "blip-large": "Salesforce/blip-image-captioning-large",
    "toy": str(TOYS / "blip"),
}
"""Short names of captioners."""


class Captioner(Protocol):
    """Says what photos show."""

    def caption(self, images: Sequence[np.ndarray]) -> list[str]:
        """Images H x W x 3 uint8 of any sizes -> one line of text for each, in their order."""
        ...


@dataclass(frozen=True, kw_only=True)
class CaptionerSettings:
    """Which captioner, and how it writes."""

    captioner: str = "blip"
    """A BLIP: its hub id, a folder that transformers saved, or `blip`, `blip-large`, `toy`."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of its weights; fp16 is for GPUs."""
    beams: int = 3
    """Of the search for the likeliest caption; 1 takes the likeliest word each time."""
    max_words: int = 40
    """Longest caption, in tokens."""
    begin: str = ""
    """How each caption begins, such as "a photo of"; it is part of the caption."""

    def __post_init__(self) -> None:
        if self.beams < 1 or self.max_words < 1:
            raise InpaintError(f"beams {self.beams}, max_words {self.max_words}: give at least 1")

    @property
    def model(self) -> str:
        """Hub id or absolute path."""
        return absolute_name(CAPTIONERS.get(self.captioner, self.captioner))


def load_captioner(settings: CaptionerSettings, device: str | torch.device = "cpu") -> Captioner:
    """The captioner with its weights. Raises InpaintError for what is not there, or is no BLIP."""
    name, dtype = settings.model, DTYPES[settings.precision]
    return BlipCaptioner(
        model=loaded(name, BlipForConditionalGeneration.from_pretrained, dtype=dtype).eval().to(parse_device(device)),
        processor=loaded(name, AutoImageProcessor.from_pretrained, backend="pil"),
        tokenizer=loaded(name, AutoTokenizer.from_pretrained),
        settings=settings,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class BlipCaptioner:
    """BLIP; every image is resized to one square, so that a batch's sizes do not matter."""

    model: BlipForConditionalGeneration
    processor: Any
    tokenizer: Any
    settings: CaptionerSettings

    @torch.no_grad()
    def caption(self, images: Sequence[np.ndarray]) -> list[str]:
        """As `Captioner.caption`."""
        if not images:
            return []
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        begin: dict[str, Any] = {}
        if self.settings.begin:
            begin = dict(self.tokenizer([self.settings.begin] * len(images), return_tensors="pt"))
            begin = {name: begin[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        tokens = self.model.generate(
            pixels.to(self.model.device, self.model.dtype),
            num_beams=self.settings.beams,
            max_new_tokens=self.settings.max_words,
            do_sample=False,
            **begin,
        )
        return [" ".join(text.split()) for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
