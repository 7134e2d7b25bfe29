"""Grounding DINO with SAM behind `Finder`: boxes of what a text names, then a mask of each box.

Source: Liu et al. 2023, Grounding DINO; `GroundingDinoForObjectDetection` of transformers. One class is asked for at a
time: asked for together, names run together ("hand shoe") and change each other's scores. The score of a box is the
mean over the tokens of a name, as in the paper's zero-shot evaluation, and the best of the class's names: the "hand" of
"hand bag" alone is no hand bag.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, GroundingDinoForObjectDetection

from inpaint.errors import InpaintError
from inpaint.vision.boxes import Claim, findings_of
from inpaint.vision.finder import Findings, FindQuery
from inpaint.vision.pretrained import loaded
from inpaint.vision.sam import Segmenter

THRESHOLD = 0.25
"""Where nobody says otherwise; transformers' own."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GroundedSamFinder:
    """Images that the processor makes the same size share a forward; none is padded, for padding changes scores."""

    model: GroundingDinoForObjectDetection
    processor: Any
    tokenizer: Any
    segmenter: Segmenter
    threshold: float = THRESHOLD

    @classmethod
    def load(cls, name: str, segmenter: str, dtype: torch.dtype, device: torch.device, threshold: float | None) -> Self:
        """Raises InpaintError for what is not there."""
        return cls(
            model=loaded(name, GroundingDinoForObjectDetection.from_pretrained, dtype=dtype).eval().to(device),
            processor=loaded(name, AutoImageProcessor.from_pretrained, backend="pil"),
            tokenizer=loaded(name, AutoTokenizer.from_pretrained),
            segmenter=Segmenter.load(segmenter, dtype, device),
            threshold=THRESHOLD if threshold is None else threshold,
        )

    def find(self, images: Sequence[np.ndarray], query: FindQuery) -> list[Findings]:
        """As `Finder.find`."""
        pixels = [self.processor(images=image, return_tensors="pt")["pixel_values"] for image in images]
        found: dict[int, Findings] = {}
        for alike in _of_one_size(pixels):
            together = torch.cat([pixels[place] for place in alike])
            asked = [product.words for product in query.products] + [(negative,) for negative in query.negatives]
            scored = [self.boxes(together, words) for words in asked]
            for number, place in enumerate(alike):
                image = images[place]
                found[place] = findings_of(
                    [(boxes[number], scores[number]) for boxes, scores in scored],
                    query,
                    self.threshold,
                    image.shape[:2],
                    partial(self._masks, image),
                )
        return [found[place] for place in range(len(images))]

    def _masks(self, image: np.ndarray, claims: Sequence[Claim]) -> list[np.ndarray]:
        return self.segmenter.masks(image, [claim.box for claim in claims])

    @torch.no_grad()
    def boxes(self, pixels_B3hw: Tensor, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Of every query of the model: boxes B Q 4, x0 y0 x1 y1 as shares of the image, and the class's scores B Q."""
        device, dtype = self.model.device, self.model.dtype
        ids, spans = self._tokens(words)
        ids_BT = torch.tensor([ids] * len(pixels_B3hw), device=device)
        answer = self.model(
            pixel_values=pixels_B3hw.to(device, dtype),
            input_ids=ids_BT,
            token_type_ids=torch.zeros_like(ids_BT),
            attention_mask=torch.ones_like(ids_BT),
        )
        likely_BQT = answer.logits.float().sigmoid()
        scores_BQ = torch.stack([likely_BQT[..., first:last].mean(-1) for first, last in spans]).amax(0)
        x, y, width, height = answer.pred_boxes.float().unbind(-1)
        corners_BQ4 = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)
        return corners_BQ4.cpu().numpy(), scores_BQ.cpu().numpy()

    def _tokens(self, words: Sequence[str]) -> tuple[list[int], list[tuple[int, int]]]:
        """Of "hand bag. purse.", and each name's first and last token but one. Raises InpaintError: too long."""
        ids, spans = [self.tokenizer.cls_token_id], []
        (dot,) = self.tokenizer.encode(".", add_special_tokens=False)
        for word in words:
            own = self.tokenizer.encode(word.strip().lower().replace(".", " "), add_special_tokens=False)
            spans.append((len(ids), len(ids) + len(own)))
            ids += [*own, dot]
        ids.append(self.tokenizer.sep_token_id)
        if len(ids) > self.model.config.max_text_len or any(first == last for first, last in spans):
            raise InpaintError(
                f"product {', '.join(words)}: of {len(ids)} tokens, or a name has none; write other words"
            )
        return ids, spans


def _of_one_size(pixels: Sequence[Tensor]) -> Iterator[list[int]]:
    """Places of those that can share a forward."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for place, one in enumerate(pixels):
        sizes.setdefault(tuple(one.shape), []).append(place)
    yield from sizes.values()
