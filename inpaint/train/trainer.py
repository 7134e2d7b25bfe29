"""The driver's side of training on Ray Train; `start.py` and `worker.py` are the workers'.

Guarantees: a run continues from its own checkpoints, at the exact position, after a worker's death, after SIGTERM and
with `resume`, on any number of workers; Ray Train's snapshot is never needed. Nothing is trained on other rows than the
run began with.
"""

import importlib.metadata
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import ray
import ray.train
from ray.train.torch import TorchTrainer
from torch.utils.tensorboard import SummaryWriter

from inpaint import cluster, heap
from inpaint.data.pipeline import SharedRows
from inpaint.data.plan import Plan
from inpaint.data.rows import Manifest
from inpaint.data.storage import absolute, open_root, output_folder, read_file
from inpaint.errors import InpaintError, ResumeMismatch
from inpaint.progress import ProgressBar
from inpaint.stopping import StopToken
from inpaint.train.channel import open_channel, watched
from inpaint.train.checkpoint import CHECKPOINTS, CheckpointStore, Progress
from inpaint.train.console import RunConsole
from inpaint.train.encode import streaming
from inpaint.train.encoding import Encoding, Latents
from inpaint.train.loop import StepReport
from inpaint.train.recipe import Recipe
from inpaint.train.settings import Precision, RateSchedule, TrainSettings, plain
from inpaint.train.start import TRAIN_ROWS, VALIDATION_ROWS, LatentReading, PlannedReading, WorkerConfig, work

VERSIONS = ("torch", "ray", "diffusers", "transformers", "peft", "deepspeed")


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """One training of a run."""

    name: str
    """On the console."""
    recipe: Recipe
    """Bound to its rows."""
    rows: Manifest
    """What is trained on."""
    held_out: Manifest | None = None
    """What is validated on; None: on `rows`."""
    output: str
    """Folder or URL of its checkpoints, logs and manifests."""
    decoded: SharedRows | None = None
    """Its rows, where they were decoded for several readings."""

    @classmethod
    def of(cls, recipe: Recipe, rows: Manifest, held_out: Manifest | None, *, name: str, output: str) -> "Training":
        """Of a recipe that is not bound yet."""
        bound = recipe.bind(rows)
        shown = None if held_out is None else bound.in_buckets(held_out)
        return cls(name=name, recipe=bound, rows=bound.in_buckets(rows), held_out=shown, output=output)

    @property
    def plan(self) -> Plan:
        """The order of its rows."""
        return Plan.of(self.rows, self.recipe.train.seed, self.recipe.train.global_batch)

    @property
    def total(self) -> int:
        """Samples of all of it."""
        settings = self.recipe.train
        return settings.total_samples(self.plan.samples_per_epoch)

    @property
    def length(self) -> str:
        """How long it is: `65 images x 6 repeats / 2 = 195 steps per epoch, 1,950 in all`."""
        settings = self.recipe.train
        samples, batch = self.plan.samples_per_epoch, settings.global_batch
        counts = sorted(Counter(self.rows.table["repeats"].to_pylist()).items(), reverse=True)
        terms = [f"{images:,} images" + (f" x {times} repeats" if times > 1 else "") for times, images in counts]
        said = " + ".join(terms)
        if len(self.rows.shares) > 1:
            said = f"{samples:,} samples"  # an epoch is one pass over the first source, the others keep their share
        elif len(terms) > 1:
            said = f"({said})"
        steps = f"{samples / batch:,.1f}".removesuffix(".0")
        said = f"{said} / {batch} = {steps} steps per epoch, {self.total // batch:,} in all"
        if self.rows.buckets is not None:
            said += f", in {len(np.unique(self.rows.buckets))} shapes"
        return f"{said}; {told}" if (told := self.left_out) else said

    @property
    def left_out(self) -> str:
        """What it shows in no step, and why; empty where there is nothing."""
        if self.rows.buckets is None or not (count := self.plan.left_out(self.total)):
            return ""
        return (
            f"{count:,} images are of shapes that so few have that no step shows them: give more epochs, or a smaller "
            "batch"
        )

    @property
    def store(self) -> CheckpointStore:
        return CheckpointStore(f"{self.output}/{CHECKPOINTS}")


def fit(
    training: Training,
    *,
    side_by_side: int = 1,
    stop: StopToken | None = None,
    watch: Callable[[StepReport], None] | None = None,
    workers: cluster.Needs | None = None,
    callbacks: Sequence[Any] = (),
) -> Progress:
    """Train on the connected cluster.

    Args:
        side_by_side: trainings that share the cluster.
        watch: called with every step's report, some time after the step, and with what painted pictures showed.
        workers: so many, of that size; None: as many as find a place in the training's share of the cluster.
        callbacks: Ray Train's, told of each validation.

    Returns where it ended: before the end only where `stop` was asked for.

    Raises:
        InpaintError: its output holds a run already and `resume` is off, or the cluster can never fit the job.
        ResumeMismatch: the run in its output began with other rows or other settings.
    """
    recipe, rows, held_out, output = training.recipe, training.rows, training.held_out, absolute(training.output)
    total, started = training.total, starting_point(training)
    if started.samples >= total:
        return started
    stop = stop or StopToken()
    stop.check()
    with output_folder(output) as folder:
        rows.save(folder / TRAIN_ROWS)
        if held_out is not None:
            held_out.save(folder / VALIDATION_ROWS)
        recipe.begin(folder)
    channel = open_channel()
    encoding = recipe.how_encoded()
    workers, encoders = (workers, None) if workers else _needs(recipe.train, side_by_side, encoding)
    threads, use_gpu = cluster.worker_threads(workers.cpus_per_worker), workers.gpus_per_worker > 0
    resources = {"CPU": workers.cpus_per_worker, **({"GPU": workers.gpus_per_worker} if use_gpu else {})}
    if encoding is not None and encoders is not None:
        held = workers.workers * workers.cpus_per_worker * side_by_side
        free = sum(node.cpus for node in cluster.cluster_nodes()) - held
        latents = LatentReading(stage=streaming(encoding, encoders, free_cpus=free))
    else:
        latents = LatentReading.of_cache(encoding)
    pickled = ray.cloudpickle.dumps((recipe, started))
    storage = open_root(f"{output}/ray_train")
    config = WorkerConfig(
        train=recipe.train,
        total=total,
        output=output,
        cache=latents.cache,
        channel=channel,
        threads=threads,
        pickled=pickled,
    )
    trainer = TorchTrainer(
        work,
        train_loop_config={"config": config},
        # A placeholder: what is read is decided by `PlannedReading`, once Ray Train knows the world size.
        datasets={"train": lambda: ray.data.range(1)},
        dataset_config=PlannedReading(recipe.read_settings(), config, latents, training.decoded),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.workers, use_gpu=use_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            # A fresh one each time: Ray Train then never looks for a snapshot of its own to restore.
            name=f"{training.name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}",
            storage_path=storage.path,
            storage_filesystem=storage.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=recipe.train.max_failures),
            worker_runtime_env={"env_vars": _environment(threads, use_gpu=use_gpu)},
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            callbacks=list(callbacks),
        ),
    )
    with (
        output_folder(f"{output}/tensorboard") as logs,
        SummaryWriter(str(logs)) as writer,
        ProgressBar(training.name, done=started.samples, total=total, text="starting workers") as bar,
        watched(channel, RunConsole(bar, writer), stop, watch),
    ):
        failure = None
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            failure = error
        refusal = ray.get(channel.refusal.remote())
        if refusal is not None:
            raise InpaintError(refusal) from failure
        if failure is not None:
            raise failure
    ended = training.store.progress()
    assert ended is not None, "a finished run has a checkpoint"
    return ended


def runs_side_by_side(settings: TrainSettings, encoding: Encoding | None = None) -> int:
    """How many trainings of this kind the connected cluster can hold at once, at least 1.

    On GPUs: as many as find a GPU for every worker, and for encoders beside them. On CPUs: as many as find a machine
    for every worker, for two trainings on one machine take as long as one after the other.

    Raises:
        ClusterTooSmall: it can never hold even one.
        InpaintError: it would train in fp16 on CPUs.
    """
    workers, encoders = _needs(settings, 1, encoding)
    nodes, each = cluster.cluster_nodes(), settings.worker_range[0]
    if not workers.gpus_per_worker:
        return max(1, len(nodes) // each)
    if encoders is not None:
        each += math.ceil(encoders.workers * encoders.gpus_per_worker)
    return max(1, sum(int(node.gpus) for node in nodes) // each)


def _needs(
    settings: TrainSettings, side_by_side: int, encoding: Encoding | None
) -> tuple[cluster.Needs, cluster.Needs | None]:
    """As many workers of the settings' range as find a GPU, or a CPU, each; and the encoders beside them where latents
    are streamed, which have their places first."""
    nodes = cluster.cluster_nodes()
    use_gpu = settings.gpu if settings.gpu is not None else any(node.gpus for node in nodes)
    if settings.precision is Precision.FP16 and not use_gpu:
        why = "the cluster has none" if settings.gpu is None else "gpu is false"
        raise InpaintError(f"precision fp16 needs GPUs, and {why}: give bf16 or fp32")
    fewest, most = settings.worker_range
    places = sum(int(node.gpus if use_gpu else node.cpus) for node in nodes)
    streamed = encoding.settings if encoding is not None and encoding.latents is Latents.STREAMED else None
    actors = 0 if streamed is None else streamed.actors or 1
    share = streamed.gpus_per_actor if streamed is not None and any(node.gpus for node in nodes) else 0.0
    own = 0.0 if streamed is None else streamed.cpus_per_actor or (1.0 if use_gpu or share else 0.0)
    if use_gpu:
        places -= math.ceil(actors * share * side_by_side)
    workers = max(fewest, min(most, places // side_by_side))
    # Encoders that nobody gave CPUs share them with the workers.
    sharing, data_cpus = workers + (0 if own else actors), cluster.reading_cpus(nodes) + math.ceil(actors * own)
    cpus = cluster.plan_workers(sharing * side_by_side, use_gpu, nodes, data_cpus)
    needs = cluster.Needs(workers=workers, cpus_per_worker=cpus, gpus_per_worker=float(use_gpu))
    cluster.check_fits(needs, nodes)
    if streamed is None:
        return needs, None
    encoders = cluster.Needs(workers=actors, cpus_per_worker=own or cpus, gpus_per_worker=share, data_cpus=0)
    cluster.check_together([needs, encoders], nodes)
    return needs, encoders


def starting_point(training: Training) -> Progress:
    """Where `fit` would begin. Looks for all that it refuses, and needs no workers. Raises as it does."""
    recipe, output, settings = training.recipe, training.output, training.recipe.train
    rows, held_out = training.rows, training.held_out
    for used in filter(None, (rows, held_out)):
        recipe.check_rows(used)
    fixed = plain(recipe, fixed_only=True)
    if settings.schedule is not RateSchedule.CONSTANT or settings.warmup:
        # What a learning rate is depends on where the run will end; a constant one can go on for longer.
        fixed["total"] = training.total
    fixed = json.loads(json.dumps(fixed))
    found = training.store.progress()
    if found is None:
        versions = {name: importlib.metadata.version(name) for name in VERSIONS}
        validating = "" if held_out is None else held_out.hash
        began: dict[str, Any] = {"manifest": rows.hash, "held_out": validating, "run": fixed, "versions": versions}
        return Progress(samples=0, steps=0, seed=settings.seed, **began)
    if not recipe.resume:
        raise InpaintError(
            f"{output} holds a run that is at sample {found.samples}: continue it with --resume, or give another output"
        )
    # Settings first, for rows may be others because of them.
    changed = _changes(found.run, fixed)
    if changed:
        raise ResumeMismatch(
            f"{output} began with other settings: {', '.join(changed)}. Resume with the old ones, or a new output"
        )
    _check_same(rows, found.manifest, output, TRAIN_ROWS)
    if held_out is not None:
        _check_same(held_out, found.held_out, output, VALIDATION_ROWS)
    return found


def _check_same(rows: Manifest, was: str, output: str, file: str) -> None:
    """Args: was: the hash of those that lie in `file`."""
    if rows.hash != was:
        is_there = read_file(output, file) is not None
        how = Manifest.load(f"{output}/{file}").difference(rows) if is_there else "its hash is another"
        raise ResumeMismatch(f"{output} began with other rows: {how}. Restore the data, or start a new output")


def _changes(was: Any, now: Any, where: str = "") -> list[str]:
    """`train.seed was 0, now 1` for each leaf that differs."""
    if isinstance(was, dict) and isinstance(now, dict):
        names = sorted(was.keys() | now.keys())
        return [line for n in names for line in _changes(was.get(n), now.get(n), f"{where}.{n}" if where else n)]
    return [] if was == now else [f"{where} was {was!r}, now {now!r}"]


def _environment(threads: int, *, use_gpu: bool) -> dict[str, str]:
    """More threads than cores make a step up to 50 times slower; the rest keeps libraries from talking."""
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore::FutureWarning"}
    few = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    on_cpu = {"DS_ACCELERATOR": "cpu", **heap.KEEPS}
    return {**few, **({} if use_gpu else on_cpu), **quiet}
