"""CLIPSeg behind `Finder`: a heat map for each word, and products where it is hot.

Source: Lueddecke and Ecker 2022, Image Segmentation Using Text and Image Prompts; `CLIPSegForImageSegmentation`.
Shapes: B images, W words, h x w of the heat map, H x W of the photo.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import cv2
import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, CLIPSegForImageSegmentation

from inpaint.vision.boxes import box_of
from inpaint.vision.finder import MOST_FOUND, Findings, FindQuery, Found
from inpaint.vision.pretrained import loaded

THRESHOLD = 0.4
"""Of the heat, where nobody says otherwise."""
SPECK = 1e-3
"""Share of the photo below which what is hot is no product."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipSegFinder:
    """A pixel is the class's that is hottest there, if that reaches the class's threshold and no negative is hotter;
    each connected piece is a product, and its score its highest heat. The heat of a class is its hottest word's."""

    model: CLIPSegForImageSegmentation
    processor: Any
    tokenizer: Any
    threshold: float = THRESHOLD

    @classmethod
    def load(cls, name: str, dtype: torch.dtype, device: torch.device, threshold: float | None) -> Self:
        """Raises InpaintError for what is not there."""
        return cls(
            model=loaded(name, CLIPSegForImageSegmentation.from_pretrained, dtype=dtype).eval().to(device),
            processor=loaded(name, AutoImageProcessor.from_pretrained, backend="pil"),
            tokenizer=loaded(name, AutoTokenizer.from_pretrained),
            threshold=THRESHOLD if threshold is None else threshold,
        )

    def find(self, images: Sequence[np.ndarray], query: FindQuery) -> list[Findings]:
        """As `Finder.find`."""
        if not images:
            return []
        words = [word for product in query.products for word in product.words] + list(query.negatives)
        heat_BWhw = self.heat(images, words)
        return [
            self._findings(dict(zip(words, heat_Whw, strict=True)), image.shape[:2], query)
            for heat_Whw, image in zip(heat_BWhw, images, strict=True)
        ]

    @torch.no_grad()
    def heat(self, images: Sequence[np.ndarray], words: Sequence[str]) -> np.ndarray:
        """Of each word in each image: B W h w, float32 in [0, 1]. The image is encoded once for all words."""
        device, dtype = self.model.device, self.model.dtype
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"].to(device, dtype)
        tokens = self.tokenizer(list(words), padding=True, truncation=True, return_tensors="pt").to(device)
        told_WD = self.model.clip.get_text_features(**tokens).pooler_output
        seen = self.model.clip.vision_model(pixels, output_hidden_states=True).hidden_states
        logits = heat_map(self.model, seen, told_WD.repeat(len(images), 1), len(words))
        heat: np.ndarray = logits.float().sigmoid().unflatten(0, (-1, len(words))).cpu().numpy()
        return heat

    def _findings(self, heat: Mapping[str, np.ndarray], size: tuple[int, int], query: FindQuery) -> Findings:
        height, width = size
        owner, most = np.full(size, -1, np.int16), np.zeros(size, np.float32)
        best, hottest = {}, {}
        for number, product in enumerate(query.products):
            own = _resized(np.maximum.reduce([heat[word] for word in product.words]), height, width)
            place = np.unravel_index(own.argmax(), size)
            best[product.name], hottest[product.name] = float(own[place]), place
            wins = (own >= (product.threshold or self.threshold)) & (own > most)
            owner[wins], most[wins] = number, own[wins]
        for number, negative in enumerate(query.negatives, start=len(query.products)):
            own = _resized(heat[negative], height, width)
            wins = own > most
            owner[wins & (owner >= 0)], most[wins] = number, own[wins]
        pieces = [
            (float(most[tuple(where)].max()), product.name, where)
            for number, product in enumerate(query.products)
            for where in _pieces(owner == number)
        ]
        pieces.sort(key=lambda piece: -piece[0])
        claimed = {name: int(owner[place]) - len(query.products) for name, place in hottest.items()}
        overruled = {name: query.negatives[number] for name, number in claimed.items() if number >= 0}
        found = tuple(_found(product, score, where, size) for score, product, where in pieces[:MOST_FOUND])
        return Findings(found=found, best=best, overruled=overruled, left_out=len(pieces) - len(found))


def heat_map(model: CLIPSegForImageSegmentation, seen: Sequence[Tensor], told_ND: Tensor, words: int) -> Tensor:
    """Logits N h w: what each of `words` texts asks for in each image, by the texts' features (N = B x words, those of
    an image side by side). With gradients, which the model's own forward has for its decoder alone, and each image is
    encoded once.

    Args:
        seen: the images' hidden states, as its encoder gives them.
    """
    layers = [seen[layer + 1].repeat_interleave(words, dim=0) for layer in model.extract_layers]
    logits: Tensor = model.decoder(layers, told_ND).logits
    return logits


def _resized(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """At the photo's size; the processor did not keep its aspect either."""
    return cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)


def _pieces(mask: np.ndarray) -> list[np.ndarray]:
    """The connected parts of a mask, H x W bool, that are no specks, each as the pixels' places, 2 x N."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    rows, columns = np.nonzero(mask)
    order = np.argsort(labels[rows, columns], kind="stable")
    areas = stats[1:count, cv2.CC_STAT_AREA]
    parts = np.split(np.stack([rows, columns])[:, order], np.cumsum(areas)[:-1], axis=1)
    return [part for part, area in zip(parts, areas, strict=False) if area >= max(1, SPECK * mask.size)]


def _found(product: str, score: float, where: np.ndarray, size: tuple[int, int]) -> Found:
    mask = np.zeros(size, bool)
    mask[tuple(where)] = True
    return Found(product=product, score=score, box=box_of(mask), mask=mask)
