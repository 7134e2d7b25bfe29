"""DDPM inpainting end to end: five images on three workers, a number that divides nothing; full checkpoints, resume,
both functions."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import inpaint
from inpaint.errors import InpaintError, ResumeMismatch
from inpaint.train.checkpoint import CheckpointStore
from tests.jobs.conftest import ROOT, JobResult, checkpoint, difference, run

pytestmark = pytest.mark.timeout(900)
# At the preset's own rate Adam makes 1e-5 of rounding in gradients that should be zero.
RATE = 1e-4


def train(data: Path, output: Path, *, lr: float = RATE) -> int:
    """On one worker, by the Python function; samples that the run has seen."""
    settings = {"batch_size": 8, "lr": lr, "image_size": 32, "save_every_n_epochs": 2.4, "workers": 1}
    assert inpaint.train_inpainting(data, output, 6, **settings) == str(output)
    progress = CheckpointStore(f"{output}/checkpoints").progress()
    assert progress is not None
    return progress.samples


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


@pytest.fixture(scope="module", autouse=True)
def three(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Future[JobResult]]]:
    """The same training by the command, on three workers; beside the first tests."""
    output = tmp_path_factory.mktemp("three")
    command = [sys.executable, "-m", "ray_jobs.train_ddpm", "--data", str(data), "--output", str(output)]
    command += ["--image-size", "32", "--learning-rate", str(RATE), "--train.epochs", "6", "--train.workers", "3"]
    command += ["--train.zero-stage", "2", "--train.global-batch", "8", "--train.max-micro-batch", "2"]
    with ThreadPoolExecutor(1) as threads:
        yield output, threads.submit(run, command, cwd=ROOT, env=dict(os.environ))


@pytest.fixture(scope="module")
def on_three(three: tuple[Path, Future[JobResult]]) -> Path:
    output, ended = three
    result = ended.result()
    assert result.succeeded, result.logs
    return output


@pytest.fixture(scope="module")
def on_one(ray_cluster: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained by the Python function on one worker."""
    output = tmp_path_factory.mktemp("one")
    first, again = train(data, output), train(data, output)
    assert first == again == 32, "a finished run is not trained again"
    with pytest.raises(ResumeMismatch, match="learning_rate was"):
        train(data, output, lr=0.5)
    return output


def test_the_python_function_paints_with_it(data: Path, on_one: Path, tmp_path: Path) -> None:
    mask = np.full((32, 32), 255, np.uint8)
    mask[8:20, 8:20] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    result = inpaint.inpaint_image(data / "cats/deep/b.png", tmp_path / "mask.png", on_one, 2)
    assert result.shape == (32, 32, 3)


def test_an_empty_folder_is_refused(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(InpaintError, match="no rows"):
        inpaint.train_inpainting(tmp_path / "none", tmp_path / "run")


def test_five_images_on_three_workers_learn_what_they_do_on_one(on_one: Path, on_three: Path) -> None:
    assert difference(checkpoint(on_three, 32), checkpoint(on_one, 32)) <= 1e-5


def test_a_checkpoint_holds_weights_optimizer_and_moving_average(on_three: Path) -> None:
    held = checkpoint(on_three, 32)
    assert (
        difference(
            {n.partition("/")[2]: t for n, t in held.items() if n.startswith("ema/")},
            {n.partition("/")[2]: t for n, t in held.items() if n.startswith("trained/")},
        )
        > 0
    )
    assert any(t.any() for n, t in held.items() if n.startswith("exp_avg_sq/"))


def test_the_command_paints_with_it(on_three: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (50, 41, 3)).astype(np.uint8)
    mask = np.full((50, 41), 255, np.uint8)
    mask[10:30, 5:25] = 0
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    command = [sys.executable, "-m", "ray_jobs.paint", "--model", str(on_three), "--image", "image.png"]
    command += ["--mask", "mask.png", "--output", "output.png", "--sampling.steps", "3"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = run(command, cwd=tmp_path, env=env)
    assert result.succeeded, result.logs
    painted = np.asarray(Image.open(tmp_path / "output.png"))
    assert np.array_equal(painted[mask == 255], image[mask == 255])
    assert not np.array_equal(painted[mask == 0], image[mask == 0])
    assert (tmp_path / "output_comparison.png").is_file()
