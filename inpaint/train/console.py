"""What a run shows: a progress bar with its figures, and the same figures and pictures as TensorBoard files."""

from collections import deque

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from inpaint.progress import ProgressBar
from inpaint.train.checkpoint import VALIDATION_LOSS
from inpaint.train.loop import StepReport
from inpaint.warned import Warned, Warnings

WINDOW = 50
"""Steps over which figures are averaged."""
PaintedValidation = tuple[int, np.ndarray, dict[str, float]]
"""Of a validation: samples trained on, its pictures as one (uint8 H W 3), means of what was measured on them."""
Told = StepReport | Warned | PaintedValidation
"""What workers tell: the report of a step or of a validation, warnings, or what was painted."""


class RunConsole:
    """Shows on the bar, and keeps in the TensorBoard files, what the workers of one run tell."""

    def __init__(self, bar: ProgressBar, writer: SummaryWriter) -> None:
        self._bar, self._writer = bar, writer
        self._window: deque[StepReport] = deque(maxlen=WINDOW + 1)
        self._validated = ""
        self._warned = Warnings()

    def show(self, told: Told) -> None:
        """Take in what a worker told."""
        if isinstance(told, Warned):
            if self._warned.add(told):
                self._bar.warn(told.text)
        elif isinstance(told, tuple):
            samples, pictures, measured = told
            self._writer.add_image("validation", pictures, samples, dataformats="HWC")
            for name, value in measured.items():
                self._writer.add_scalar(f"validation_{name}", value, samples)
        elif VALIDATION_LOSS in told:
            self._writer.add_scalar(VALIDATION_LOSS, told[VALIDATION_LOSS], int(told["samples"]))
            self._validated = f"  validation {told[VALIDATION_LOSS]:.4f}"
            self._show(self._figures())
        else:
            if self._window and told["samples"] <= self._window[-1]["samples"]:
                self._window.clear()  # a group that started again, from a checkpoint and perhaps elsewhere
            self._window.append(told)
            figures = self._figures()
            for name, value in {"loss": told["loss"], **figures}.items():
                self._writer.add_scalar(name, value, int(told["samples"]))
            self._show(figures)

    def sum_up(self) -> None:
        """At the end: how often each warning came that was no single one."""
        for warned in self._warned.kinds.values():
            if warned.count > 1:
                self._bar.warn(warned.line)

    def _show(self, figures: dict[str, float]) -> None:
        text = f"loss {figures['mean_loss']:.4f}{self._validated}"
        if "samples_per_s" in figures:
            text += f"  {figures['samples_per_s']:.1f} samples/s  waiting {figures['waiting_share']:.0%}"
        text += f"  {figures['peak_share']:.0%} of peak" if "peak_share" in figures else ""
        last = self._window[-1]
        self._bar.show(int(last["samples"]), int(last["total"]), text)

    def _figures(self) -> dict[str, float]:
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
