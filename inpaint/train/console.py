"""What a run shows: a progress bar (plain lines where there is no terminal), TensorBoard, and a log of figures."""

import time
from collections import deque
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

PLAIN_EVERY = 10.0
"""Seconds between lines where there is no terminal."""
WINDOW = 50
"""Steps over which figures are averaged."""

PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "L4": 121e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
}
"""Dense bf16 (T4: fp16) peak in FLOP/s by a part of the device's name, from the makers' data sheets."""


def peak_flops(device_name: str) -> float | None:
    """The peak of a GPU by its name, or None where it is not listed."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)


class RunConsole:
    """Shows the reports of `inpaint.train.loop` for one run, and keeps them in TensorBoard files below `logs`."""

    def __init__(self, title: str, logs: Path, *, start: int, total: int, peak: float | None = None) -> None:
        self.title = title
        self.peak = peak
        self._start = start
        self._window: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self._writer = SummaryWriter(str(logs))
        self._terminal = Console(stderr=True)
        self._printed = time.monotonic()
        self._warned: set[str] = set()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        self._bar = Progress(
            *columns, TimeRemainingColumn(), TextColumn("{task.fields[figures]}"), console=self._terminal
        )
        self._task = self._bar.add_task(title, total=total, completed=start, figures="starting workers")

    def __enter__(self) -> "RunConsole":
        if self._terminal.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal.is_terminal:
            self._bar.stop()
        elif self._window:
            self._print(self._window[-1])
        self._writer.close()

    def show(self, report: dict[str, float]) -> None:
        """Take in one step's report."""
        self._window.append(report)
        step = int(report["samples"])
        self._writer.add_scalar("loss", report["loss"], step)
        for name, value in self.figures().items():
            self._writer.add_scalar(name, value, step)
        self._bar.update(self._task, completed=step, figures=self._text())
        if not self._terminal.is_terminal and time.monotonic() - self._printed > PLAIN_EVERY:
            self._print(report)

    def warn(self, message: str) -> None:
        """Print a line above the bar; a message that came before is not repeated."""
        if message in self._warned:
            return
        self._warned.add(message)
        self._terminal.print(f"[yellow]warning[/yellow] {self.title}: {message}", highlight=False)

    def figures(self) -> dict[str, float]:
        """Averages over the last steps: loss, samples/s, share of time waiting for data, share of the GPU's peak."""
        seconds = sum(r["seconds"] for r in self._window)
        steps = list(self._window)
        batch = (steps[-1]["samples"] - steps[0]["samples"]) / (len(steps) - 1) if len(steps) > 1 else 0.0
        rate = batch * len(steps) / seconds
        figures = {
            "mean_loss": sum(r["loss"] for r in steps) / len(steps),
            "samples_per_s": rate,
            "waiting_share": sum(r["waited"] for r in steps) / seconds,
        }
        if self.peak and "flops_per_sample" in steps[-1]:
            figures["peak_share"] = rate * steps[-1]["flops_per_sample"] / self.peak
        return figures

    def _text(self) -> str:
        figures = self.figures()
        text = f"loss {figures['mean_loss']:.4f}  {figures['samples_per_s']:.1f} samples/s"
        text += f"  waiting {figures['waiting_share']:.0%}"
        return text + (f"  {figures['peak_share']:.0%} of peak" if "peak_share" in figures else "")

    def _print(self, report: dict[str, float]) -> None:
        left = report["total"] - report["samples"]
        rate = self.figures()["samples_per_s"]
        eta = f"{left / rate:.0f} s left" if rate else "ETA unknown"
        samples = f"{int(report['samples'])}/{int(report['total'])}"
        self._terminal.print(f"{self.title}  {samples}  {self._text()}  {eta}", highlight=False)
        self._printed = time.monotonic()
