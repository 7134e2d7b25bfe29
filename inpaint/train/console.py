"""What a run shows: a progress bar with its figures, and the same figures and pictures as TensorBoard files."""

from collections import deque
from pathlib import Path
from types import TracebackType

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from inpaint.progress import ProgressBar
from inpaint.train.checkpoint import VALIDATION_LOSS

WINDOW = 50
"""Steps over which figures are averaged."""


class RunConsole:
    """Shows the reports of `inpaint.train.loop` for one run, and keeps them in TensorBoard files below `logs`."""

    def __init__(self, title: str, logs: Path, *, start: int, total: int) -> None:
        self.bar = ProgressBar(title, done=start, total=total, text="starting workers")
        self._window: deque[dict[str, float]] = deque(maxlen=WINDOW + 1)
        self._validated = ""
        self._writer = SummaryWriter(str(logs))

    def __enter__(self) -> "RunConsole":
        self.bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.__exit__(kind, error, trace)
        self._writer.close()

    def show(self, report: dict[str, float]) -> None:
        """Take in the report of a step or of a validation."""
        samples = int(report["samples"])
        if VALIDATION_LOSS in report:
            self._writer.add_scalar(VALIDATION_LOSS, report[VALIDATION_LOSS], samples)
            self._validated = f"  validation {report[VALIDATION_LOSS]:.4f}"
            return
        self._window.append(report)
        self._writer.add_scalar("loss", report["loss"], samples)
        figures = self.figures()
        for name, value in figures.items():
            self._writer.add_scalar(name, value, samples)
        text = f"loss {figures['mean_loss']:.4f}{self._validated}"
        if "samples_per_s" in figures:
            text += f"  {figures['samples_per_s']:.1f} samples/s  waiting {figures['waiting_share']:.0%}"
        text += f"  {figures['peak_share']:.0%} of peak" if "peak_share" in figures else ""
        self.bar.show(samples, int(report["total"]), text)

    def picture(self, samples: int, grid: np.ndarray) -> None:
        """Keep the pictures of a validation, uint8 H W 3."""
        self._writer.add_image("validation", grid, samples, dataformats="HWC")

    def figures(self) -> dict[str, float]:
        """Averages over the last steps: loss; from the second on samples/s, share of time waiting for data, share of
        the GPUs' peak."""
        first, *later = self._window
        figures = {"mean_loss": sum(step["loss"] for step in self._window) / len(self._window)}
        if later:
            seconds = later[-1]["time"] - first["time"]
            rate = (later[-1]["samples"] - first["samples"]) / seconds
            figures |= {"samples_per_s": rate, "waiting_share": sum(step["waited"] for step in later) / seconds}
            if first.get("peak_flops"):
                figures["peak_share"] = rate * first["flops_per_sample"] / first["peak_flops"]
        return figures
