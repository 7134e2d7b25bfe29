"""SAM: masks of boxes.

Source: Kirillov et al. 2023, Segment Anything; `SamModel` of transformers, whose processor knows its coordinates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from transformers import AutoImageProcessor, SamModel, SamProcessor

from inpaint.vision.finder import Box
from inpaint.vision.pretrained import loaded

BOXES_AT_ONCE = 8
"""Each has a mask of fractions at the photo's size while it is made: 16 MB of a photo of 2048 x 2048."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmenter:
    """A SAM, which encodes an image once for all its boxes."""

    model: SamModel
    processor: SamProcessor

    @classmethod
    def load(cls, name: str, dtype: torch.dtype, device: torch.device) -> Self:
        """Raises InpaintError for what is not there."""
        images: Any = loaded(name, AutoImageProcessor.from_pretrained, backend="pil")
        model = loaded(name, SamModel.from_pretrained, dtype=dtype).eval().to(device)
        return cls(model=model, processor=SamProcessor(images))

    @torch.no_grad()
    def masks(self, image: np.ndarray, boxes: Sequence[Box]) -> list[np.ndarray]:
        """What the model sees in each box, H x W bool; perhaps nothing."""
        if not boxes:
            return []
        device, dtype = self.model.device, self.model.dtype
        asked = [[list(map(float, box)) for box in boxes]]
        seen = self.processor(images=image, input_boxes=asked, return_tensors="pt")
        encoded = self.model.get_image_embeddings(seen["pixel_values"].to(device, dtype))
        found: list[np.ndarray] = []
        for part in seen["input_boxes"].to(device, dtype).split(BOXES_AT_ONCE, dim=1):
            logits = self.model(image_embeddings=encoded, input_boxes=part, multimask_output=False).pred_masks
            (masks,) = self.processor.image_processor.post_process_masks(
                logits.float(), seen["original_sizes"], seen["reshaped_input_sizes"]
            )
            found += list(masks[:, 0].cpu().numpy())
        return found
