"""ControlNets are found, checked against their base, and the shipped one holds the shape of products."""

from pathlib import Path

import numpy as np
import pytest

from inpaint.errors import InpaintError
from inpaint.models.base import load_base
from inpaint.models.controlnet import load_controlnet, new_controlnet
from inpaint.models.locate import locate_controlnet
from inpaint.paint.painter import Painter
from inpaint.paint.request import Control, PaintRequest, SamplingSettings
from inpaint.toy.recoloured import recoloured
from inpaint.vision.control import edges
from tests.tiny import tiny_sd_inpaint


def test_what_does_not_fit_its_base_or_is_not_there_is_refused(tmp_path: Path) -> None:
    tiny, toy = load_base(tiny_sd_inpaint(tmp_path / "base")), load_base("toy")
    new_controlnet(tiny).save_pretrained(tmp_path / "net")
    assert load_controlnet(str(tmp_path / "net"), tiny).config.in_channels == 4
    with pytest.raises(InpaintError, match=r"ControlNet .*net: its block_out_channels is \[8, 16\]"):
        load_controlnet(str(tmp_path / "net"), toy)
    _, _, revision = locate_controlnet(str(tmp_path / "net"))
    assert load_controlnet(str(tmp_path / "net"), tiny, revision) is not None
    with pytest.raises(InpaintError, match=r"revision abc is wanted"):
        load_controlnet(str(tmp_path / "net"), tiny, "abc")
    with pytest.raises(InpaintError, match="ControlNet nowhere: no such folder"):
        load_controlnet("nowhere", tiny)
    (tmp_path / "net" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "net" / "diffusion_pytorch_model.bin")
    with pytest.raises(InpaintError, match="only pickled weights"):
        load_controlnet(str(tmp_path / "net"), tiny)


def test_the_shipped_one_paints_what_is_named_in_the_shape_that_was_there() -> None:
    base = load_base("toy")
    painter = Painter(base, controlnet=load_controlnet("toy-edges", base))
    pairs = [recoloured(900_001, index) for index in range(4)]
    sampling = SamplingSettings(steps=10)
    requests = [
        PaintRequest(
            image=pair.before.image,
            hole=pair.before.product,
            prompt=pair.after.caption(False),
            seed=number,
            sampling=sampling,
            control=Control(image=edges([pair.before.image])[0]),
        )
        for number, pair in enumerate(pairs)
    ]
    for pair, image in zip(pairs, painter.paint(requests), strict=True):
        hole = pair.before.product
        errors = [
            float(np.abs(image[hole].astype(float) - scene.image[hole]).mean()) for scene in (pair.after, pair.before)
        ]
        assert errors[0] < errors[1], "it is nearer to the old colour than to the one that the prompt names"


def test_a_products_colour_alone_differs_between_the_photos_of_a_pair() -> None:
    pair = recoloured(3, 5)
    assert pair.before.colour != pair.after.colour and pair.before.shape == pair.after.shape
    assert np.array_equal(pair.before.product, pair.after.product)
    rim = np.abs(pair.before.image.astype(int) - pair.after.image).max(axis=2) > 0
    ys, xs = np.nonzero(pair.before.product)
    box = np.zeros_like(rim)
    box[ys.min() - 1 : ys.max() + 2, xs.min() - 1 : xs.max() + 2] = True
    assert not (rim & ~box).any()
