"""The driver's side of training on Ray Train; `start.py` and `worker.py` are the workers'.

Guarantees: a run continues from its own checkpoints, at the exact position, after a worker's death, after SIGTERM and
with `resume`, on any number of workers; Ray Train's snapshot is never needed. Nothing is trained on other rows than the
run began with.
"""

import importlib.metadata
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer
from torch.utils.tensorboard import SummaryWriter

from inpaint import cluster
from inpaint.data.plan import Plan
from inpaint.data.rows import Manifest
from inpaint.data.storage import absolute, output_folder, read_file
from inpaint.errors import InpaintError, ResumeMismatch
from inpaint.progress import ProgressBar
from inpaint.stopping import StopToken
from inpaint.train.channel import open_channel, watched
from inpaint.train.checkpoint import CHECKPOINTS, CheckpointStore, Progress
from inpaint.train.console import RunConsole
from inpaint.train.loop import StepReport
from inpaint.train.planned_reading import TRAIN_ROWS, VALIDATION_ROWS, PlannedReading
from inpaint.train.recipe import Recipe
from inpaint.train.settings import RateSchedule, TrainSettings, plain
from inpaint.train.start import WorkerConfig, work

VERSIONS = ("torch", "ray", "diffusers", "transformers", "peft", "deepspeed")


def fit(
    recipe: Recipe,
    rows: Manifest,
    held_out: Manifest | None,
    output: str,
    *,
    name: str,
    side_by_side: int = 1,
    stop: StopToken | None = None,
    watch: Callable[[StepReport], None] | None = None,
) -> Progress:
    """Train a bound recipe on the connected cluster; checkpoints, logs and the manifests go to `output`.

    Args:
        rows: what is trained on.
        held_out: what is validated on; None: on `rows`.
        side_by_side: trainings that share the cluster.
        watch: called with every step's report, some time after the step.

    Returns where it ended: before the end only where `stop` was asked for.

    Raises:
        InpaintError: `output` holds a run already and `resume` is off, or the cluster can never fit the job.
        ResumeMismatch: the run in `output` began with other rows or other settings.
    """
    settings, output = recipe.train, absolute(output)
    store = CheckpointStore(f"{output}/{CHECKPOINTS}", keep=settings.keep_checkpoints)
    total = settings.total_samples(Plan.of(rows, settings.seed).samples_per_epoch)
    started = starting_point(recipe, rows, held_out, output)
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
    work = WorkerConfig(recipe.train, total, output, channel, ray.cloudpickle.dumps((recipe, started)))
    trainer = _trainer(recipe, work, f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}", side_by_side)
    with (
        output_folder(f"{output}/tensorboard") as logs,
        SummaryWriter(str(logs)) as writer,
        ProgressBar(name, done=started.samples, total=total, text="starting workers") as bar,
        watched(channel, RunConsole(bar, writer), stop, watch),
    ):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            refusal = ray.get(channel.refusal.remote())
            if refusal is None:
                raise
            raise InpaintError(refusal) from error
    ended = store.progress()
    assert ended is not None, "a finished run has a checkpoint"
    return ended


def _trainer(recipe: Recipe, config: WorkerConfig, name: str, side_by_side: int) -> TorchTrainer:
    """Args: name: a fresh one each time; Ray Train then never looks for a snapshot of its own to restore."""
    scaling, threads = _scaling(recipe.train, side_by_side)
    reading = PlannedReading(recipe.read_settings(), recipe.train, config.output, config.total)
    return TorchTrainer(
        work,
        train_loop_config={"config": config, "threads": threads},
        # A placeholder: what is read is decided by `PlannedReading`, once Ray Train knows the world size.
        datasets={"train": lambda: ray.data.range(1)},
        dataset_config=reading,
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=f"{config.output}/ray_train",
            failure_config=ray.train.FailureConfig(max_failures=recipe.train.max_failures),
            worker_runtime_env={"env_vars": _environment(threads, use_gpu=scaling.use_gpu)},
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )


def runs_side_by_side(settings: TrainSettings) -> int:
    """How many trainings of this kind the connected cluster can hold at once, at least 1.

    On GPUs: as many as find a GPU for every worker. On CPUs: as many as find a machine for every worker, for two
    trainings on one machine take as long as one after the other.

    Raises:
        ClusterTooSmall: it can never hold even one.
    """
    _scaling(settings, 1)
    nodes = cluster.cluster_nodes()
    places = sum(int(node.gpus) for node in nodes) if _on_gpu(settings) else len(nodes)
    return max(1, places // settings.worker_range[0])


def _on_gpu(settings: TrainSettings) -> bool:
    return settings.gpu if settings.gpu is not None else any(node.gpus for node in cluster.cluster_nodes())


def _scaling(settings: TrainSettings, side_by_side: int) -> tuple[ray.train.ScalingConfig, int]:
    """As many workers of the settings' range as find a GPU, or a CPU, each; and the threads of one."""
    nodes, use_gpu = cluster.cluster_nodes(), _on_gpu(settings)
    fewest, most = settings.worker_range
    places = sum(int(node.gpus if use_gpu else node.cpus) for node in nodes)
    workers = max(fewest, min(most, places // side_by_side))
    cpus = cluster.plan_workers(workers * side_by_side, use_gpu, nodes)
    gpus = 1.0 if use_gpu else 0.0
    cluster.check_fits(cluster.Needs(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus), nodes)
    resources: dict[str, float] = {"CPU": cpus, **({"GPU": gpus} if use_gpu else {})}
    scaling = ray.train.ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker=resources)
    return scaling, cluster.worker_threads(cpus)


def starting_point(recipe: Recipe, rows: Manifest, held_out: Manifest | None, output: str) -> Progress:
    """Where `fit` would begin. Looks for all that it refuses, and needs no workers. Raises as it does."""
    settings, output = recipe.train, absolute(output)
    total = settings.total_samples(Plan.of(rows, settings.seed).samples_per_epoch)
    read = recipe.read_settings()
    for used in filter(None, (rows, held_out)):
        read.check_categories(used.categories)
    fixed = plain(recipe, fixed_only=True)
    if settings.schedule is not RateSchedule.CONSTANT or settings.warmup:
        # What a learning rate is depends on where the run will end; a constant one can go on for longer.
        fixed["total"] = total
    fixed = json.loads(json.dumps(fixed))
    found = CheckpointStore(f"{output}/{CHECKPOINTS}").progress()
    if found is None:
        versions = {name: importlib.metadata.version(name) for name in VERSIONS}
        return Progress(samples=0, steps=0, seed=settings.seed, manifest=rows.hash, run=fixed, versions=versions)
    if not recipe.resume:
        raise InpaintError(
            f"{output} holds a run that is at sample {found.samples}: continue it with --resume, or give another output"
        )
    if found.manifest != rows.hash:
        is_there = read_file(output, TRAIN_ROWS) is not None
        how = Manifest.load(f"{output}/{TRAIN_ROWS}").difference(rows) if is_there else "its hash is another"
        raise ResumeMismatch(f"{output} began with other rows: {how}. Restore the data, or start a new output")
    changed = _changes(found.run, fixed)
    if changed:
        raise ResumeMismatch(
            f"{output} began with other settings: {', '.join(changed)}. Resume with the old ones, or a new output"
        )
    return found


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
    # On CPUs a step allocates and frees the same tensors again and again; given back to the kernel between, their pages
    # are faulted in anew each time, which costs a tenth of the step.
    on_cpu = {"DS_ACCELERATOR": "cpu", "MALLOC_ARENA_MAX": "1"}
    on_cpu |= dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(2**30))
    return {**few, **({} if use_gpu else on_cpu), **quiet}
