"""What a training loop costs per sample: ours through Ray Train, and others in fresh Ray processes, in turn."""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import numpy as np
import ray

from benchmarks.harness import paired_ratio
from inpaint import cluster
from inpaint.data.plan import Plan
from inpaint.data.rows import Manifest
from inpaint.data.sample import read_batch
from inpaint.recipes.lora import LoraRecipe
from inpaint.train.loop import StepReport
from inpaint.train.objective import MicroBatch
from inpaint.train.trainer import Training, fit


@dataclass(frozen=True, kw_only=True)
class LoopTimes:
    """Of one run of a loop."""

    ended: list[float]
    """`time.perf_counter()` at the end of each step."""
    device: str
    """The GPU's name, or `cpu`."""
    memory: int = 0
    """Most bytes that tensors took on the GPU."""


Loop = Callable[..., LoopTimes]
"""(recipe, batches, *, steps, threads): a loop that trains what a recipe says on batches in memory."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One training, ready to be run by either side."""

    recipe: LoraRecipe
    rows: Manifest
    use_gpu: bool
    steps: int
    """Counted steps."""
    warmup: int
    """Steps before them."""

    def per_sample(self, ended: Sequence[float]) -> float:
        """Seconds, from the ends of all steps."""
        counted = ended[self.warmup - 1 :]
        assert len(counted) == self.steps + 1, f"{len(ended)} steps were reported"
        return (counted[-1] - counted[0]) / self.steps / self.recipe.train.global_batch


@dataclass(kw_only=True)
class Compared:
    """Both sides' runs."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "theirs": []})
    """Per sample, by round."""
    reports: list[StepReport] = field(default_factory=list)
    """Of our counted steps."""
    ratio: float = 0.0
    """Median of ours / theirs over the rounds."""
    ratios: list[float] = field(default_factory=list)
    theirs: LoopTimes | None = None
    """Their last run."""

    @property
    def medians(self) -> dict[str, float]:
        """Seconds per sample."""
        return {side: median(values) for side, values in self.seconds.items()}

    @property
    def waiting_share(self) -> float:
        """Share of the time between our steps that was spent waiting for data."""
        pairs = [(a, b) for a, b in pairwise(self.reports) if b["samples"] > a["samples"]]
        return sum(b["waited"] for _, b in pairs) / sum(b["time"] - a["time"] for a, b in pairs)


def compare(subject: Subject, rival: Loop, rounds: int) -> Compared:
    """Let ours and another loop take turns."""
    found, batches = Compared(), batches_of(subject)

    def timed(side: str, per_sample: float) -> float:
        found.seconds[side].append(per_sample)
        return per_sample

    def theirs() -> float:
        found.theirs = in_fresh_process(subject, rival, batches)
        return timed("theirs", subject.per_sample(found.theirs.ended))

    found.ratio, found.ratios = paired_ratio(lambda: timed("ours", ours(subject, found.reports)), theirs, rounds)
    return found


def ours(subject: Subject, reports: list[StepReport]) -> float:
    """Seconds per sample of a run through Ray Train; its counted reports are appended to `reports`."""
    found: list[StepReport] = []
    with tempfile.TemporaryDirectory() as output:
        training = Training(name="train-step", recipe=subject.recipe, rows=subject.rows, output=output)
        fit(training, watch=found.append)
    reports += found[subject.warmup :]
    return subject.per_sample([report["time"] for report in found])


def in_fresh_process(subject: Subject, loop: Loop, batches: list[MicroBatch]) -> LoopTimes:
    """Run a loop with the threads and niceness that our worker has."""
    threads = cluster.worker_threads(cluster.plan_workers(1, subject.use_gpu, cluster.cluster_nodes()))
    remote = ray.remote(num_cpus=1, num_gpus=int(subject.use_gpu), max_calls=1)(loop)
    environment = {"OMP_NUM_THREADS": str(threads), "TRANSFORMERS_VERBOSITY": "error"}
    call = remote.options(runtime_env={"env_vars": environment}).remote(
        subject.recipe, batches, steps=subject.warmup + subject.steps, threads=threads
    )
    return ray.get(call)


def batches_of(subject: Subject) -> list[MicroBatch]:
    """The batches of the first epoch, in memory."""
    rows, batch = subject.rows, subject.recipe.train.global_batch
    plan, read = Plan.of(rows, 0), subject.recipe.read_settings()
    positions = np.arange(max(len(rows) // batch, 1) * batch).reshape(-1, batch)
    with ThreadPoolExecutor(1) as threads:
        return [read_batch(rows, plan, read, some, threads) for some in positions]
