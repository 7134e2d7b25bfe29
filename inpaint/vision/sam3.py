"""SAM 3 behind `Finder`: instances of a concept with their masks, by one model. Needs torchvision.

Source: Carion et al. 2025, SAM 3: Segment Anything with Concepts; `Sam3Model` of transformers. The score of an instance
is its own times that of the concept's presence, as `post_process_instance_segmentation` has it. Shapes: B images, Q
queries of the model, h x w of its masks.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import cv2
import numpy as np
import torch
from transformers import AutoProcessor, Sam3Model

from inpaint.errors import InpaintError
from inpaint.vision.boxes import Claim, findings_of
from inpaint.vision.finder import Findings, FindQuery
from inpaint.vision.pretrained import loaded

THRESHOLD = 0.5
"""Where nobody says otherwise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sam3Finder:
    """Every image becomes one square, and is encoded once for all words; each word is asked for by itself."""

    model: Any
    processor: Any
    threshold: float = THRESHOLD

    @classmethod
    def load(cls, name: str, dtype: torch.dtype, device: torch.device, threshold: float | None) -> Self:
        """Raises InpaintError for what is not there, and without torchvision."""
        if importlib.util.find_spec("torchvision") is None:
            raise InpaintError(
                f"finder {name}: SAM 3's processor needs torchvision, which is not installed: install the version that "
                "belongs to your torch (`pip install torchvision`), or use grounding-dino or clipseg"
            )
        return cls(
            model=loaded(name, Sam3Model.from_pretrained, dtype=dtype).eval().to(device),
            processor=loaded(name, AutoProcessor.from_pretrained),
            threshold=THRESHOLD if threshold is None else threshold,
        )

    @torch.no_grad()
    def find(self, images: Sequence[np.ndarray], query: FindQuery) -> list[Findings]:
        """As `Finder.find`."""
        if not images:
            return []
        device, dtype = self.model.device, self.model.dtype
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"].to(device, dtype)
        seen = self.model.get_vision_features(pixels)
        asked = [product.words for product in query.products] + [(negative,) for negative in query.negatives]
        answers = [self._answers(seen, len(images), words) for words in asked]
        return [
            findings_of(
                [(boxes[number], scores[number]) for boxes, scores, _ in answers],
                query,
                self.threshold,
                image.shape[:2],
                partial(_masks, [masks[number] for _, _, masks in answers], image.shape[:2]),
            )
            for number, image in enumerate(images)
        ]

    def _answers(self, seen: Any, images: int, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes B N 4 as shares of the image, scores B N and masks' logits B N h w, the words' instances in a row."""
        parts = []
        for word in words:
            told = self.processor(text=[word] * images, return_tensors="pt").to(self.model.device)
            answer = self.model(vision_embeds=seen, input_ids=told["input_ids"], attention_mask=told["attention_mask"])
            scores_BQ = answer.pred_logits.float().sigmoid() * answer.presence_logits.float().sigmoid()
            parts.append((answer.pred_boxes.float(), scores_BQ, answer.pred_masks.half()))
        boxes, scores, masks = (torch.cat(part, dim=1).cpu().numpy() for part in zip(*parts, strict=True))
        return boxes, scores, masks


def _masks(logits: Sequence[np.ndarray], size: tuple[int, int], claims: Sequence[Claim]) -> list[np.ndarray]:
    """H x W bool of each claim, from N h w of each thing that was asked for."""
    height, width = size
    own = [logits[claim.asked][claim.number].astype(np.float32) for claim in claims]
    return [cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR) > 0 for one in own]
