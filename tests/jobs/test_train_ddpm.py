"""DDPM inpainting end to end: five images on three workers, full checkpoints, resume, both functions."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import inpaint
from inpaint.errors import InpaintError, ResumeMismatch
from inpaint.recipes.ddpm import preset, train_ddpm
from tests.jobs.conftest import ROOT, JobResult, checkpoint, difference, run

pytestmark = pytest.mark.timeout(900)
TINY = "--image-size 32 --unet.channels 8 16 16 24 --unet.attention 16 --unet.time-width 16"
# At the preset's own rate Adam makes 1e-5 of rounding in gradients that should be zero.
TRAIN = "--learning-rate 1e-4 --train.epochs 6 --train.global-batch 6 --train.micro-batch 2 --train.checkpoint-every 12"


def train_by_command(data: Path, output: Path, *more: str) -> JobResult:
    arguments = [sys.executable, "-m", "ray_jobs.train_ddpm", "--data", str(data), "--output", str(output)]
    return run([*arguments, *TINY.split(), *TRAIN.split(), *more], cwd=ROOT, env=dict(os.environ))


def train_on_one(data: Path, output: Path, *, resume: bool = False) -> Path:
    """The same training without the command, on one worker without ZeRO."""
    config = preset(32, data=str(data), output=str(output))
    config = replace(
        config,
        learning_rate=1e-4,
        classes=True,
        unet=replace(config.unet, channels=(8, 16, 16, 24), attention=(16,), time_width=16),
        train=replace(
            config.train, epochs=6, global_batch=6, micro_batch=2, checkpoint_every=12, workers=1, zero_stage=0
        ),
        resume=resume,
    )
    train_ddpm(config)
    return output


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images in folders of their classes: grey, with alpha, odd-sized, small and large."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    shapes = {
        "cats/a": (40, 33),
        "cats/deep/b": (32, 32, 3),
        "dogs/c": (71, 35, 4),
        "dogs/d": (20, 90, 3),
        "e": (99, 51),
    }
    for name, shape in shapes.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def on_three(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("three")
    result = train_by_command(data, output, "--train.workers", "3", "--train.zero-stage", "2", "--classes")
    assert result.succeeded, result.logs
    return output


@pytest.fixture(scope="module")
def on_one(ray_cluster: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_one(data, tmp_path_factory.mktemp("one"))


def test_five_images_on_three_workers_learn_what_one_worker_learns(on_one: Path, on_three: Path) -> None:
    assert difference(checkpoint(on_three, 30), checkpoint(on_one, 30)) <= 1e-5


def test_a_checkpoint_holds_weights_optimizer_and_moving_average(on_three: Path) -> None:
    held = checkpoint(on_three, 30)
    assert (
        difference(
            {n.partition("/")[2]: t for n, t in held.items() if n.startswith("ema/")},
            {n.partition("/")[2]: t for n, t in held.items() if n.startswith("trained/")},
        )
        > 0
    )
    assert any(t.any() for n, t in held.items() if n.startswith("exp_avg_sq/"))
    assert json.loads((on_three / "model.json").read_text())["classes"] == ["cats", "deep", "dogs"]


def test_a_run_goes_on_exactly(data: Path, on_one: Path, tmp_path: Path) -> None:
    """From the checkpoint before its last, as after a crash."""
    output = shutil.copytree(on_one, tmp_path / "run")
    shutil.rmtree(output / "checkpoints" / "samples-000000000030")
    train_on_one(data, output, resume=True)
    assert difference(checkpoint(on_one, 30), checkpoint(output, 30)) == 0.0


def test_the_command_paints_with_it(on_three: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (50, 41, 3)).astype(np.uint8)
    mask = np.full((50, 41), 255, np.uint8)
    mask[10:30, 5:25] = 0
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    command = [sys.executable, "-m", "ray_jobs.paint", "--model", str(on_three), "--image", "image.png"]
    command += ["--mask", "mask.png", "--output", "output.png", "--sampling.steps", "3", "--label", "cats"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = run(command, cwd=tmp_path, env=env)
    assert result.succeeded, result.logs
    painted = np.asarray(Image.open(tmp_path / "output.png"))
    assert np.array_equal(painted[mask == 255], image[mask == 255])
    assert not np.array_equal(painted[mask == 0], image[mask == 0])
    assert (tmp_path / "output_comparison.png").is_file()


def test_both_python_functions(ray_cluster: None, data: Path, tmp_path: Path) -> None:
    given = {"batch_size": 4, "image_size": 32, "save_every_n_epochs": 2}
    first = inpaint.train_inpainting(data, tmp_path / "run", num_epochs=2, **given)
    again = inpaint.train_inpainting(data, tmp_path / "run", num_epochs=2, **given)
    assert first.samples == again.samples == 12, "a finished run is not trained again"
    with pytest.raises(ResumeMismatch, match="learning_rate was"):
        inpaint.train_inpainting(data, tmp_path / "run", num_epochs=2, lr=0.5, **given)
    assert inpaint.train_inpainting(data, tmp_path / "run", num_epochs=4, **given).samples == 20
    mask = np.full((32, 32), 255, np.uint8)
    mask[8:20, 8:20] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    result = inpaint.inpaint_image(data / "cats/deep/b.png", tmp_path / "mask.png", tmp_path / "run", 2)
    assert result.shape == (32, 32, 3)


def test_an_empty_folder_is_refused(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(InpaintError, match="no rows"):
        inpaint.train_inpainting(tmp_path / "none", tmp_path / "run")
