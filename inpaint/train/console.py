"""What a run shows: a progress bar with its figures, and the same figures as TensorBoard files."""

from collections import deque
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from inpaint.progress import ProgressBar

WINDOW = 50
"""Steps over which figures are averaged."""


class RunConsole:
    """Shows the reports of `inpaint.train.loop` for one run, and keeps them in TensorBoard files below `logs`."""

    def __init__(self, title: str, logs: Path, *, start: int, total: int) -> None:
        self.bar = ProgressBar(title, done=start, total=total, text="starting workers")
        self._window: deque[dict[str, float]] = deque(maxlen=WINDOW)
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
        """Take in one step's report."""
        self._window.append(report)
        figures = self.figures()
        self._writer.add_scalar("loss", report["loss"], int(report["samples"]))
        for name, value in figures.items():
            self._writer.add_scalar(name, value, int(report["samples"]))
        text = f"loss {figures['mean_loss']:.4f}  {figures['samples_per_s']:.1f} samples/s"
        text += f"  waiting {figures['waiting_share']:.0%}"
        text += f"  {figures['peak_share']:.0%} of peak" if "peak_share" in figures else ""
        self.bar.show(int(report["samples"]), int(report["total"]), text)

    def figures(self) -> dict[str, float]:
        """Averages over the last steps: loss, samples/s, share of time waiting for data, share of the GPU's peak."""
        steps = list(self._window)
        seconds = sum(step["seconds"] for step in steps)
        batch = (steps[-1]["samples"] - steps[0]["samples"]) / (len(steps) - 1) if len(steps) > 1 else 0.0
        rate = batch * len(steps) / seconds
        figures = {
            "mean_loss": sum(step["loss"] for step in steps) / len(steps),
            "samples_per_s": rate,
            "waiting_share": sum(step["waited"] for step in steps) / seconds,
        }
        if steps[-1].get("peak_flops"):
            figures["peak_share"] = rate * steps[-1]["flops_per_sample"] / steps[-1]["peak_flops"]
        return figures
