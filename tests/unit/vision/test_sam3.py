"""SAM 3 says what it lacks; with it, its instances become findings."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from inpaint.errors import InpaintError
from inpaint.vision.finder import FindQuery
from inpaint.vision.sam3 import Sam3Finder


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is there")
def test_without_torchvision_it_says_what_is_lacking_and_what_to_use_instead() -> None:
    with pytest.raises(InpaintError, match=r"needs torchvision.*grounding-dino or clipseg"):
        Sam3Finder.load("facebook/sam3", torch.float32, torch.device("cpu"), None)


class Batch(dict):
    def to(self, *_: object) -> "Batch":
        return self


class StandIn:
    """Answers as `Sam3Model`: one instance per word, in the left half; "shoe" is not there."""

    device, dtype = torch.device("cpu"), torch.float32

    def get_vision_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels

    def __call__(self, vision_embeds, input_ids, attention_mask) -> SimpleNamespace:
        images = len(vision_embeds)
        masks = torch.full((images, 1, 4, 4), -5.0)
        masks[..., :2] = 5.0
        there = torch.where(input_ids[:, :1] == len("shoe"), -9.0, 9.0)
        boxes = torch.tensor([0.0, 0.0, 0.5, 1.0]).expand(images, 1, 4)
        return SimpleNamespace(
            pred_logits=torch.full((images, 1), 4.0), presence_logits=there, pred_boxes=boxes, pred_masks=masks
        )


def processor(images=None, text=None, return_tensors="pt") -> Batch:
    if images is not None:
        return Batch(pixel_values=torch.zeros(len(images), 3, 8, 8))
    ids = torch.tensor([[len(word)] for word in text])
    return Batch(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_instances_of_a_concept_that_is_present_are_found_once_for_all_synonyms() -> None:
    finder = Sam3Finder(model=StandIn(), processor=processor)
    images = [np.zeros((8, 12, 3), np.uint8), np.zeros((6, 6, 3), np.uint8)]
    for findings, (height, width) in zip(
        finder.find(images, FindQuery.parse(["shoe", "hand bag|purse"])), ((8, 12), (6, 6)), strict=True
    ):
        (one,) = findings.found
        assert (one.product, one.box) == ("hand bag", (0, 0, width // 2, height))
        assert one.mask.shape == (height, width) and one.mask.sum() == height * width // 2
        assert findings.best["shoe"] < 0.01 < 0.9 < findings.best["hand bag"]
    assert finder.find([], FindQuery.parse(["shoe"])) == []
