"""What every benchmark shares: progress on stderr, one JSON object as the last line on stdout."""

import importlib.metadata
import json
import os
import platform
import sys
import threading
from collections.abc import Callable
from statistics import median

import psutil


def progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def emit(benchmark: str, figures: dict[str, float], **details: object) -> None:
    """Print `{"benchmark", "figures", "host", ...details}` on one line of stdout."""
    report = {"benchmark": benchmark, "figures": figures, "host": host(), **details}
    print(json.dumps(report), flush=True)


def host() -> dict[str, object]:
    packages = ("torch", "ray", "diffusers", "transformers", "peft", "deepspeed")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def paired_ratio(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> tuple[float, list[float]]:
    """Run both sides in turn, `rounds` times, and return the median of ours / theirs and all ratios.

    Each side returns its own figure (seconds, images/s). Taking turns cancels a machine whose speed drifts.
    """
    ratios = []
    for i in range(rounds):
        a, b = (ours(), theirs()) if i % 2 == 0 else tuple(reversed((theirs(), ours())))
        ratios.append(a / b)
        progress(f"round {i + 1}/{rounds}: ours {a:.4g}, theirs {b:.4g}, ratio {a / b:.3f}")
    return median(ratios), ratios


class PeakMemory(threading.Thread):
    """The largest sum of proportional set sizes of this process and all below it, sampled every 0.2 s."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._stop_now = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self._stop_now.wait(0.2):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, total)

    def __enter__(self) -> "PeakMemory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_now.set()
        self.join()
