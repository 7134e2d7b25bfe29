"""The main job end to end, as commands: it learns the same on 1 and 2 workers, goes on exactly after SIGTERM and
with another number of workers, refuses what it must, and its adapter paints."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from inpaint.toy.catalogue import write_catalogue
from tests.jobs.conftest import ROOT, JobResult, RayHead, checkpoint, difference, run

SAMPLES = 48
pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Command:
    """`python -m ray_jobs.NAME` from the checkout, on an embedded Ray."""

    data: Path
    output: Path

    def arguments(self, *more: str) -> list[str]:
        settings = f"--train.samples {SAMPLES} --train.global-batch 8 --train.micro-batch 4 --train.checkpoint-every 16"
        settings += " --train.ema-halflife 16"
        arguments = [sys.executable, "-m", "ray_jobs.train_category_lora", "--data", str(self.data)]
        return [*arguments, "--output", str(self.output), "--card-samples", "0", *settings.split(), *more]

    def run(self, *more: str) -> JobResult:
        return run(self.arguments(*more), cwd=ROOT, env=dict(os.environ))

    def checkpoint(self, samples: int) -> dict[str, torch.Tensor]:
        """Trained parameters and Adam's moments, by kind and name."""
        return checkpoint(self.output, samples)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalogue")
    return write_catalogue(folder, seed=3, count=10, categories=("CDP_COS", "CDP_FOOD"))


@pytest.fixture(scope="module")
def on_one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The uninterrupted run, on one worker without ZeRO."""
    command = Command(data, tmp_path_factory.mktemp("one"))
    result = command.run("--train.workers", "1", "--train.zero-stage", "0")
    assert result.succeeded, result.logs
    return command


def test_a_submitted_job_on_two_workers_learns_what_one_worker_learns(
    ray_head: RayHead, data: Path, on_one: Command, tmp_path: Path
) -> None:
    command = Command(data, tmp_path)
    # By URL, as on a cluster.
    arguments = command.arguments("--train.workers", "2", "--train.zero-stage", "2", "--output", tmp_path.as_uri())
    result = ray_head.submit("python", *arguments[1:])
    assert result.succeeded, result.logs
    assert difference(command.checkpoint(SAMPLES), on_one.checkpoint(SAMPLES)) <= 1e-5
    card = json.loads((tmp_path / "adapters" / "shared" / "adapter.json").read_text())
    assert sorted(card["tokens"]) == ["CDP_COS", "CDP_FOOD"]
    assert card["samples"] == SAMPLES


def test_after_sigterm_it_goes_on_exactly_where_it_was(data: Path, on_one: Command, tmp_path: Path) -> None:
    command = Command(data, tmp_path)
    settings = ("--train.workers", "1", "--train.zero-stage", "0")
    process = subprocess.Popen(
        command.arguments(*settings, "--train.checkpoint-every", "1000"),
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

    refused = command.run(*settings)
    assert not refused.succeeded
    assert "continue it with --resume" in refused.logs

    result = command.run(*settings, "--resume")
    assert result.succeeded, result.logs
    assert difference(command.checkpoint(SAMPLES), on_one.checkpoint(SAMPLES)) == 0.0


def test_it_refuses_to_resume_on_other_data_or_settings_and_says_what_differs(on_one: Command) -> None:
    changed = on_one.data.read_text().splitlines()
    other = on_one.data.with_name("other.csv")
    other.write_text("\n".join(changed[:-1]))
    for command, arguments, said in (
        (Command(other, on_one.output), (), "another manifest"),
        (on_one, ("--unet-learning-rate", "0.5"), "rates was"),
    ):
        result = command.run("--train.workers", "1", "--resume", *arguments)
        assert not result.succeeded
        assert said in result.logs


def test_a_cluster_that_is_too_small_is_said_at_once(data: Path, tmp_path: Path) -> None:
    result = Command(data, tmp_path).run("--train.workers", "2", "--train.gpu", "True")
    assert not result.succeeded
    assert "2 more GPU (2 asked, 0 there)" in result.logs
