"""The objective of a ControlNet: it alone is trained, and what it sees is what painting shows it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from inpaint.data.rows import Manifest, Row
from inpaint.diffusion.objective import LossSettings
from inpaint.models.base import Base, load_base
from inpaint.models.controlnet import load_controlnet, new_controlnet
from inpaint.paint.painter import Painter
from inpaint.recipes.controlnet import TrainControlNet
from inpaint.train.checkpoint import Progress
from inpaint.train.controlled import ControlledInpainting
from inpaint.train.latent import LatentInpainting
from inpaint.train.objective import MicroBatch
from inpaint.train.recipe import Trained
from inpaint.train.settings import Precision
from inpaint.vision.control import edges
from tests.tiny import SIZE, tiny_sd_inpaint, tiny_sdxl_inpaint
from tests.unit.paint.examples import control, controlnet_of, request

SETTINGS = {"seed": 1, "loss": LossSettings(), "precision": Precision.FP32}


@pytest.fixture(scope="module", params=[tiny_sd_inpaint, tiny_sdxl_inpaint])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return request.param(tmp_path_factory.mktemp("base"))


@pytest.fixture
def base(folder: Path) -> Base:
    loaded = load_base(folder)
    for module in (loaded.unet, loaded.vae, *loaded.text_encoders):
        module.requires_grad_(False)
    return loaded


def batch() -> MicroBatch:
    """Two photos of a bright square."""
    images = np.random.default_rng(0).integers(0, 90, (2, SIZE, SIZE, 3), dtype=np.uint8)
    images[:, 10:22, 6:20] = 230
    holes = np.zeros((2, SIZE, SIZE), dtype=np.uint8)
    holes[:, 8:24, 4:20] = 255
    told = {"original_size": np.full((2, 2), SIZE), "crop_top_left": np.zeros((2, 2), int)}
    prompts = np.array(["the red wood", "wood"], dtype=object)
    return {"position": np.array([3, 7]), "image": images, "hole": holes, **told, "prompt": prompts}


def test_one_that_is_new_adds_nothing_and_is_all_that_is_trained(base: Base) -> None:
    objective = ControlledInpainting(base, new_controlnet(base), edges, learning_rate=1e-3, **SETTINGS)
    loss_B = objective(batch())
    assert torch.equal(loss_B, LatentInpainting(base, [], **SETTINGS)(batch()))
    loss_B.mean().backward()
    (group,) = objective.groups()
    assert group.parameters.keys() == dict(objective.controlnet.named_parameters()).keys()
    # Zero convolutions learn first; behind them nothing does as yet (Zhang et al. 2023, section 3.1).
    learning = {name for name, p in group.parameters.items() if p.grad is not None and p.grad.any()}
    assert learning and all(name.startswith("controlnet_") for name in learning)
    assert not any(p.grad is not None for p in base.unet.parameters())


def test_the_loss_depends_on_the_pictures_alone_that_it_is_shown(base: Base) -> None:
    def loss_with(pictures):
        return ControlledInpainting(base, controlnet_of(base), pictures, learning_rate=1e-3, **SETTINGS)(batch())

    blank = loss_with(lambda images: [np.zeros_like(image) for image in images])
    assert not torch.allclose(loss_with(edges), blank)
    assert torch.equal(blank, loss_with(lambda images: [0 * picture for picture in edges(images)]))


def test_a_validation_paints_as_the_painter_does(base: Base) -> None:
    net = controlnet_of(base).train()
    objective = ControlledInpainting(base, net, edges, learning_rate=1e-3, **SETTINGS)
    with torch.no_grad():
        painted = objective.paint(batch(), 2)
    assert net.training and len(painted) == 2 and "psnr" in painted[0].figures
    bare = LatentInpainting(base, [], **SETTINGS)
    assert not np.array_equal(bare.paint(batch(), 2)[0].picture, painted[0].picture)


def test_what_is_exported_is_loaded_and_paints_the_same(base: Base, folder: Path, tmp_path: Path) -> None:
    recipe = TrainControlNet(data="d", output="o", base=str(folder), preset="toy")
    rows = Manifest.of([Row(id="a", root="d", image="a.png", width=8, height=8, digest="0" * 64)], (1,))
    net = controlnet_of(base)
    progress = Progress(samples=8, steps=1, manifest=rows.hash, seed=0)
    recipe = recipe.bind(rows)
    recipe.export(Trained("net", dict(net.state_dict()), progress, 8, rows), tmp_path / "net")
    loaded = load_controlnet(str(tmp_path / "net"), base)
    wanted = request(1, control=control(1), steps=2)
    ours, theirs = (Painter(base, controlnet=one).paint_raw([wanted])[0] for one in (loaded, net))
    assert 0 < np.abs(ours - theirs).max() < 0.02, "it is written in fp16"
