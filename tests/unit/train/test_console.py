"""What a run shows, and that what shows it may fail without being lost."""

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from inpaint.stopping import StopToken
from inpaint.train import channel
from inpaint.train.console import RunConsole
from inpaint.train.loop import PEAK_FLOPS, peak_flops


class Screen:
    """In place of the bar and the TensorBoard files."""

    def __init__(self) -> None:
        self.scalars: dict[str, list[float]] = {}
        self.texts: list[str] = []
        self.pictures: list[str] = []

    def add_image(self, name: str, picture: np.ndarray, samples: int, dataformats: str) -> None:
        self.pictures.append(name)

    def add_scalar(self, name: str, value: float, samples: int) -> None:
        self.scalars.setdefault(name, []).append(value)

    def show(self, done: int, total: int, text: str) -> None:
        self.texts.append(text)


def step(samples: int, at: float) -> dict[str, float]:
    return {"samples": samples, "total": 100, "loss": 1.0, "waited": 0.5, "time": at}


def test_a_group_that_starts_again_elsewhere_is_not_measured_against_the_one_before() -> None:
    screen: Any = Screen()
    console = RunConsole(screen, screen)
    for told in (step(8, 1000.0), step(16, 1001.0), step(12, 3.0), step(20, 5.0)):
        console.show(told)
    assert screen.scalars["samples_per_s"] == [8.0, 4.0]
    assert screen.scalars["waiting_share"] == [0.5, 0.25]


def test_what_was_measured_on_a_validations_pictures_is_kept_beside_them() -> None:
    screen: Any = Screen()
    RunConsole(screen, screen).show((8, np.zeros((4, 4, 3), dtype=np.uint8), {"psnr": 20.0}))
    assert screen.scalars == {"validation_psnr": [20.0]} and screen.pictures == ["validation"]


def test_a_console_that_fails_ends_the_run_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bool] = []

    def hear(stop: bool) -> list[dict[str, float]]:
        heard.append(stop)
        return [step(8, 1.0)] if len(heard) == 1 else []

    actor = SimpleNamespace(hear=SimpleNamespace(remote=hear))
    monkeypatch.setattr(channel, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(channel.ray, "get", lambda told: told)

    def watch(report: dict[str, float]) -> None:
        raise OSError("the disk is full")

    screen: Any = Screen()
    training = channel.watched(actor, RunConsole(screen, screen), StopToken(), watch)
    with pytest.raises(OSError, match="the disk is full"), training:
        until = time.monotonic() + 10
        while True not in heard and time.monotonic() < until:
            time.sleep(0.001)
    assert heard[:2] == [False, True], "the workers were asked to stop"


@pytest.mark.parametrize(
    ("device", "listed"),
    [("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA A100-SXM4-80GB", "A100"), ("Tesla T4", "T4"), ("NVIDIA L40S", "L40S")],
)
def test_a_gpu_has_its_own_peak(device: str, listed: str) -> None:
    assert peak_flops(device) == PEAK_FLOPS[listed]
    assert peak_flops("NVIDIA L40") is None, "no L4"
