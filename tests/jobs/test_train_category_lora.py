"""The main job end to end: it learns the same alone and, as a submitted job, on two workers; goes on exactly after
SIGTERM; refuses what it must. What needs no process of its own runs on the session's cluster."""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inpaint.errors import ClusterTooSmall, InpaintError, ResumeMismatch
from inpaint.recipes.category_lora import CategoryLora
from inpaint.stopping import StopToken
from inpaint.toy.catalogue import write_catalogue
from inpaint.train.alone import train_alone
from inpaint.train.run import prepared, run
from tests.jobs.conftest import ROOT, RayHead, checkpoint, difference

SAMPLES = 48
SETTINGS = {"samples": SAMPLES, "global_batch": 8, "max_micro_batch": 4, "checkpoint_every": 16, "ema_halflife": 16}
OTHERS = ["--card-samples", "0", "--validation.samples", "8", "--validation.pictures", "1"]
ON_ONE = {"workers": 1, "zero_stage": 0}
pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Training:
    """A short training, as a command or on the session's cluster."""

    data: Path
    output: Path

    def command(self, **train: object) -> list[str]:
        flags = [f"--train.{name.replace('_', '-')}={value}" for name, value in {**SETTINGS, **train}.items()]
        paths = ["--data", str(self.data), "--output", str(self.output)]
        return ["-m", "ray_jobs.train_category_lora", *paths, *OTHERS, *flags]

    def recipe(self, *, resume: bool = False, train: dict[str, Any] = ON_ONE, **changed: Any) -> CategoryLora:
        """What the command runs."""
        config = CategoryLora.of_preset("toy", data=str(self.data), output=str(self.output))
        settings = replace(config.train, **{**SETTINGS, "epochs": None, **train})
        validation = replace(config.validation, samples=8, pictures=1)
        config = replace(config, card_samples=0, resume=resume, train=settings, validation=validation)
        return replace(config, **changed)

    def checkpoint(self, samples: int) -> dict[str, torch.Tensor]:
        """Trained parameters and Adam's moments, by kind and name."""
        return checkpoint(self.output, samples)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalogue")
    return write_catalogue(folder, seed=3, count=10, categories=("CDP_COS", "CDP_FOOD"))


@pytest.fixture(scope="module")
def trained(
    process_group: None, ray_cluster: None, ray_head: RayHead, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Training, Training]:
    """The uninterrupted run in this process, and beside it, as a job, on two workers with ZeRO 2."""
    one, two = (Training(data, tmp_path_factory.mktemp(name)) for name in ("one", "two"))
    with ThreadPoolExecutor(1) as threads:
        # By URL, as on a cluster.
        command = [*two.command(workers=2, zero_stage=2), "--output", two.output.as_uri()]
        submitted = threads.submit(ray_head.submit, "python", *command)
        (training,) = prepared(one.recipe(), StopToken())
        train_alone(training, torch.device("cpu"), 1)
        result = submitted.result()
    assert result.succeeded, result.logs
    return one, two


@pytest.fixture
def on_one(trained: tuple[Training, Training]) -> Training:
    return trained[0]


def test_a_submitted_job_on_two_workers_learns_what_one_process_learns(trained: tuple[Training, Training]) -> None:
    one, two = trained
    assert difference(two.checkpoint(SAMPLES), one.checkpoint(SAMPLES)) <= 1e-5
    card = json.loads((two.output / "adapters" / "shared" / "adapter.json").read_text())
    assert sorted(card["tokens"]) == ["CDP_COS", "CDP_FOOD"]
    assert card["samples"] == SAMPLES


def test_after_sigterm_it_goes_on_exactly_where_it_was(data: Path, on_one: Training, tmp_path: Path) -> None:
    training = Training(data, tmp_path)
    process = subprocess.Popen(
        [sys.executable, *training.command(**ON_ONE, checkpoint_every=1000)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    # Written when the training is about to start: the wish to stop is then waiting for the first step.
    while process.poll() is None and not (tmp_path / "manifest.parquet").is_file():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    logs, _ = process.communicate(timeout=300)
    assert process.returncode == 2, logs
    assert "go on with --resume" in logs
    stopped = sorted((tmp_path / "checkpoints").iterdir())
    assert [int(path.name.rpartition("-")[2]) for path in stopped] == [SETTINGS["global_batch"]]

    with pytest.raises(InpaintError, match="continue it with --resume"):
        run(training.recipe())
    run(training.recipe(resume=True))
    assert difference(training.checkpoint(SAMPLES), on_one.checkpoint(SAMPLES)) == 0.0


def test_it_refuses_to_resume_on_other_data_or_settings_and_says_what_differs(on_one: Training) -> None:
    changed = on_one.data.read_text().splitlines()
    other = on_one.data.with_name("other.csv")
    other.write_text("\n".join(changed[:-1]))
    with pytest.raises(ResumeMismatch, match="began with other rows"):
        run(Training(other, on_one.output).recipe(resume=True))
    with pytest.raises(ResumeMismatch, match="unet_learning_rate was"):
        run(on_one.recipe(resume=True, unet_learning_rate=0.5))


def test_a_cluster_that_is_too_small_is_said_at_once(ray_cluster: None, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ClusterTooSmall, match=r"2 more GPU \(2 asked, 0 there\)"):
        run(Training(data, tmp_path).recipe(train={"workers": 2, "gpu": True}))
