"""The main job end to end: it learns the same on one worker and, as a submitted job, on two; goes on exactly after
SIGTERM; refuses what it must. What needs no process of its own runs on the session's cluster."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from inpaint.errors import ClusterTooSmall, InpaintError, ResumeMismatch
from inpaint.recipes.run_category_lora import train_category_lora
from inpaint.toy.catalogue import write_catalogue
from ray_jobs.train_category_lora import parse
from tests.jobs.conftest import ROOT, RayHead, checkpoint, difference

SAMPLES = 48
pytestmark = pytest.mark.timeout(600)


ON_ONE = ("--train.workers", "1", "--train.zero-stage", "0")


@dataclass(frozen=True)
class Training:
    """A short training, as the command's arguments."""

    data: Path
    output: Path

    def arguments(self, *more: str) -> list[str]:
        settings = f"--train.samples {SAMPLES} --train.global-batch 8 --train.micro-batch 4 --train.checkpoint-every 16"
        settings += " --train.ema-halflife 16 --card-samples 0"
        return ["--data", str(self.data), "--output", str(self.output), *settings.split(), *more]

    def command(self, *more: str) -> list[str]:
        return ["-m", "ray_jobs.train_category_lora", *self.arguments(*more)]

    def run(self, *more: str) -> None:
        """What the command does, on the session's cluster."""
        train_category_lora(parse(self.arguments(*more)))

    def checkpoint(self, samples: int) -> dict[str, torch.Tensor]:
        """Trained parameters and Adam's moments, by kind and name."""
        return checkpoint(self.output, samples)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalogue")
    return write_catalogue(folder, seed=3, count=10, categories=("CDP_COS", "CDP_FOOD"))


@pytest.fixture(scope="module")
def on_one(ray_cluster: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """The uninterrupted run, on one worker without ZeRO."""
    training = Training(data, tmp_path_factory.mktemp("one"))
    training.run(*ON_ONE)
    return training


def test_a_submitted_job_on_two_workers_learns_what_one_worker_learns(
    ray_head: RayHead, data: Path, on_one: Training, tmp_path: Path
) -> None:
    training = Training(data, tmp_path)
    # By URL, as on a cluster.
    on_two = ("--train.workers", "2", "--train.zero-stage", "2", "--output", tmp_path.as_uri())
    result = ray_head.submit("python", *training.command(*on_two))
    assert result.succeeded, result.logs
    assert difference(training.checkpoint(SAMPLES), on_one.checkpoint(SAMPLES)) <= 1e-5
    card = json.loads((tmp_path / "adapters" / "shared" / "adapter.json").read_text())
    assert sorted(card["tokens"]) == ["CDP_COS", "CDP_FOOD"]
    assert card["samples"] == SAMPLES


def test_after_sigterm_it_goes_on_exactly_where_it_was(data: Path, on_one: Training, tmp_path: Path) -> None:
    training = Training(data, tmp_path)
    process = subprocess.Popen(
        [sys.executable, *training.command(*ON_ONE, "--train.checkpoint-every", "1000")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    # Written when the training is about to start: the wish to stop is then waiting for the first steps.
    while process.poll() is None and not (tmp_path / "manifest.parquet").is_file():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    logs, _ = process.communicate(timeout=300)
    assert process.returncode == 2, logs
    assert "go on with --resume" in logs
    stopped = sorted((tmp_path / "checkpoints").iterdir())
    assert [int(path.name.rpartition("-")[2]) < SAMPLES for path in stopped] == [True]

    with pytest.raises(InpaintError, match="continue it with --resume"):
        training.run(*ON_ONE)
    training.run(*ON_ONE, "--resume")
    assert difference(training.checkpoint(SAMPLES), on_one.checkpoint(SAMPLES)) == 0.0


def test_it_refuses_to_resume_on_other_data_or_settings_and_says_what_differs(on_one: Training) -> None:
    changed = on_one.data.read_text().splitlines()
    other = on_one.data.with_name("other.csv")
    other.write_text("\n".join(changed[:-1]))
    with pytest.raises(ResumeMismatch, match="another manifest"):
        Training(other, on_one.output).run(*ON_ONE, "--resume")
    with pytest.raises(ResumeMismatch, match="rates was"):
        on_one.run(*ON_ONE, "--resume", "--unet-learning-rate", "0.5")


def test_a_cluster_that_is_too_small_is_said_at_once(ray_cluster: None, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ClusterTooSmall, match=r"2 more GPU \(2 asked, 0 there\)"):
        Training(data, tmp_path).run("--train.workers", "2", "--train.gpu", "True")
