"""A Ray head of our own, started as a user would (`ray start --head`), and jobs sent to it with `ray job submit`."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file

import inpaint
from inpaint.toy.catalogue import render
from inpaint.train.encoding import Latents
from inpaint.train.settings import RateSchedule, TrainSettings, ValidationSettings
from tests.jobs.own_workload import StyleLora

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).with_name("ray")
START_SECONDS = 120


@dataclass(frozen=True)
class JobResult:
    """How a command ended."""

    succeeded: bool
    logs: str
    """All that it printed; of `ray job submit`, the job's own output too."""
    seconds: float


@dataclass(frozen=True)
class RayHead:
    """A running head node: 2 logical CPUs, dashboard on loopback, token authentication."""

    gcs_address: str
    dashboard_url: str
    env: dict[str, str]
    """Environment for commands that talk to this head: it holds the token."""
    process: subprocess.Popen[bytes]

    def submit(self, *entrypoint: str, timeout: float = 600) -> JobResult:
        """Run `ray job submit --working-dir . -- entrypoint...` from the repository root and wait for its end."""
        send = [str(RAY), "job", "submit", "--address", self.dashboard_url, "--working-dir", ".", "--"]
        return run([*send, *entrypoint], cwd=ROOT, env=self.env, timeout=timeout)


def run(command: list[str], cwd: Path, env: dict[str, str], timeout: float = 600) -> JobResult:
    """Run a command to its end, with what it prints on both streams."""
    start = time.monotonic()
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        timeout=timeout,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return JobResult(done.returncode == 0, done.stdout, time.monotonic() - start)


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """`ray start --head` on free ports; at the end its processes stop, and no other Ray's."""
    # Sockets lie in it, and their paths may have at most 107 bytes: pytest's own folders are too deep.
    temp_dir = Path(tempfile.mkdtemp(prefix="ray-"))
    port, dashboard, client, agent, metrics = _free_ports(5)
    env = {
        **os.environ,
        "PATH": os.pathsep.join([str(RAY.parent), os.environ["PATH"]]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [str(RAY), "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"]
    command += [f"--port={port}", f"--temp-dir={temp_dir}", f"--object-store-memory={512 * 1024**2}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
    log = temp_dir / "start.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    head = RayHead(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", env, process)
    try:
        _wait_until_up(head, log)
        yield head
    finally:
        _stop(process)
        shutil.rmtree(temp_dir, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _wait_until_up(head: RayHead, log: Path) -> None:
    """Until the job server answers; a job sent before its first agent has registered would wait anyway."""
    request = urllib.request.Request(
        f"{head.dashboard_url}/api/jobs/", headers={"Authorization": f"Bearer {head.env['RAY_AUTH_TOKEN']}"}
    )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert head.process.poll() is None, f"ray start ended at once:\n{log.read_text()}"
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    raise TimeoutError(f"no job server at {head.dashboard_url} after {START_SECONDS} s:\n{log.read_text()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    # Listed first: what outlives `ray start` loses its parent, and could no longer be told from others' processes.
    family = psutil.Process(process.pid).children(recursive=True)
    # Nothing of it is kept: an orderly end would take 20 s.
    process.kill()
    process.wait()
    for orphan in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            orphan.kill()
    psutil.wait_procs(family)


def checkpoint(output: Path, samples: int) -> dict[str, torch.Tensor]:
    """Trained parameters, Adam's moments and the moving average, by kind and name."""
    folder = output / "checkpoints" / f"samples-{samples:012d}"
    kinds = ("trained", "exp_avg", "exp_avg_sq", "ema")
    return {f"{kind}/{n}": t for kind in kinds for n, t in load_file(folder / f"{kind}.safetensors").items()}


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest between tensors of one name."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@dataclass(frozen=True)
class StyleRun:
    """A finished run of the workload in `own_workload.py`."""

    recipe: StyleLora
    count: int
    """Images in its folder."""

    @property
    def folder(self) -> Path:
        return Path(self.recipe.output)

    @property
    def adapter(self) -> Path:
        return self.folder / "adapters" / "style"

    @property
    def first_adapter(self) -> Path:
        """As it was, whatever goes on with the run meanwhile."""
        return self.folder.with_name("adapter")


@pytest.fixture(scope="session")
def style(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> StyleRun:
    """Trained on two workers; once, where several processes run the tests."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "style"
    recipe = StyleLora(
        data=str(folder / "images"),
        output=str(folder / "run"),
        card_samples=0,
        latents=Latents.CACHED,
        train=TrainSettings(
            samples=16, global_batch=8, workers=2, checkpoint_every=8, schedule=RateSchedule.CONSTANT, warmup=0.0
        ),
        validation=ValidationSettings(share=0.25, samples=4, pictures=2),
    )
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            for index in range(12):
                scene = render(5, index)
                (folder / "images").mkdir(parents=True, exist_ok=True)
                Image.fromarray(scene.image).save(folder / "images" / f"{index:02}.png")
                (folder / "images" / f"{index:02}.txt").write_text(scene.caption(True))
            inpaint.run(recipe)
            shutil.copytree(StyleRun(recipe, 12).adapter, folder / "adapter")
    return StyleRun(recipe, 12)
