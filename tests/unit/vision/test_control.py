"""Control pictures: edges by Canny, depth by the models of transformers, as ControlNets were trained with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessorPil

from inpaint.errors import InpaintError
from inpaint.vision.control import ControlKind, ControlSettings, edges, load_control


@pytest.fixture(scope="module")
def dpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DPT of random weights, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("dpt")
    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[4, 8, 8, 8],
        fusion_hidden_size=8,
        readout_type="project",
    )
    model = DPTForDepthEstimation(config)
    for layer in (module for module in model.modules() if isinstance(module, torch.nn.Conv2d)):
        # With transformers' own small weights all that is left at the end is nothing, under the last ReLU.
        torch.nn.init.normal_(layer.weight, std=0.5)
    torch.nn.init.constant_(model.head.head[-2].bias, 1.0)
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    DPTImageProcessorPil(size=size).save_pretrained(folder)
    return folder


def photos() -> list[np.ndarray]:
    """Of unequal sizes."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((40, 56), (64, 30))]


def test_edges_are_white_where_brightness_changes():
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 20:] = 255
    (picture,) = edges([image])
    assert picture.dtype == np.uint8 and picture.shape == image.shape and set(np.unique(picture)) == {0, 255}
    assert picture[:, 18:22].any(axis=(1, 2)).all() and not picture[:, :17].any() and not picture[:, 24:].any()
    assert load_control(ControlSettings(control=ControlKind.EDGES)) is edges


def test_depth_is_normalised_per_image_and_what_is_near_is_white(dpt):
    pictures = load_control(ControlSettings(depth_model=str(dpt)))
    made = pictures(photos())
    for photo, picture in zip(photos(), made, strict=True):
        assert picture.shape == photo.shape and picture.dtype == np.uint8
        assert (picture == picture[..., :1]).all() and picture.max() - picture.min() > 100
        pixels = pictures.processor(images=photo, return_tensors="pt")
        with torch.no_grad():
            depth = pictures.model(**pixels).predicted_depth
        # Beyond the prediction's own range bicubic interpolation is clamped.
        large = torch.nn.functional.interpolate(depth[None], photo.shape[:2], mode="bicubic", align_corners=False)[0, 0]
        share = ((large - depth.min()) / (depth.max() - depth.min())).clamp(0, 1)
        assert np.abs(picture[..., 0] / 255 - share.numpy()).max() < 0.01


def test_each_image_is_by_itself(dpt):
    pictures = load_control(ControlSettings(depth_model=str(dpt)))
    first, second = photos()
    assert np.array_equal(pictures([first, second])[1], pictures([second])[0])


def test_what_pictures_depend_on_is_known_and_what_is_not_there_is_refused(dpt, tmp_path):
    assert ControlSettings(depth_model=str(dpt)).revisions()["depth"]
    assert ControlSettings(control=ControlKind.EDGES).revisions() == {"edges": "canny 100 200"}
    with pytest.raises(InpaintError, match="model"):
        load_control(ControlSettings(depth_model=str(tmp_path)))
