"""The wiring of training on Ray Train; with `board.py` the only file of train/ that imports ray.

Guarantees: a run continues from its own checkpoints, at the exact position, after a worker's death, after SIGTERM and
with `resume`; Ray Train's snapshot is never needed. Nothing is trained on another manifest than the run began with.
"""

import importlib.metadata
import json
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device

from inpaint import cluster
from inpaint.data.pipeline import batches, data_config
from inpaint.data.plan import StepLayout
from inpaint.data.rows import Manifest
from inpaint.data.sample import ReadSettings
from inpaint.data.storage import output_folder
from inpaint.errors import InpaintError, ResumeMismatch
from inpaint.train.board import Exchange, send_warnings, start_board, watched
from inpaint.train.checkpoint import CheckpointStore, Progress
from inpaint.train.console import RunConsole
from inpaint.train.ema import MovingAverage
from inpaint.train.engine import ZeroEngine
from inpaint.train.loop import Report, Run, train
from inpaint.train.objective import Objective
from inpaint.train.settings import Schedule, TrainSettings

VERSIONS = ("torch", "ray", "diffusers", "transformers", "peft", "deepspeed")
MACHINERY = {
    *("workers", "micro_batch", "gpu", "zero_stage", "offload", "gradient_checkpointing"),
    *("checkpoint_every", "keep_checkpoints", "max_failures", "epochs", "samples"),
}
"""Settings that may change when a run is resumed: they decide how it is computed, not what is learned."""
MANIFEST = "manifest.parquet"

_stop_requested = threading.Event()


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One training run: what is read, and what is trained with it."""

    name: str
    manifest: Manifest
    read: ReadSettings
    build: Callable[[torch.device], Objective]
    """Builds the objective on a worker; must pickle (a `functools.partial` of a module's function)."""
    settings: TrainSettings
    identity: dict[str, Any] = field(default_factory=dict)
    """What else must not change when the run is resumed (rank, base revision, ...); JSON."""

    def fixed(self) -> dict[str, Any]:
        """Everything that decides what is learned, and must be the same when the run is resumed."""
        settings = {k: v for k, v in asdict(self.settings).items() if k not in MACHINERY}
        if self.settings.schedule is not Schedule.CONSTANT or self.settings.warmup:
            # What a learning rate is depends on where the run will end; a constant one can go on for longer.
            settings["total"] = self.settings.total_samples(len(self.manifest))
        read = {**asdict(self.read), "hole": repr(self.read.hole)}
        return json.loads(json.dumps({**settings, "read": read, **self.identity}))


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Within, SIGTERM or Ctrl-C asks the running trainings to write a checkpoint and end; a second one ends the
    process. Main thread only."""

    def request(number: int, frame: object) -> None:
        _stop_requested.set()
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _stop_requested.clear()


def request_stop() -> None:
    """What SIGTERM does within `stop_on_signals`: the running trainings write a checkpoint and end."""
    _stop_requested.set()


def check_stop() -> None:
    """Raise InpaintError where a stop was asked for: for the parts of a job around its trainings."""
    if _stop_requested.is_set():
        raise InpaintError("stopped as asked; go on with --resume")


def runs_side_by_side(settings: TrainSettings) -> int:
    """How many trainings of this kind the connected cluster can hold at once, at least 1.

    On GPUs: as many as find a GPU for every worker. On CPUs: as many as find a machine for every worker, for two
    trainings on one machine take as long as one after the other.
    """
    nodes = cluster.cluster_nodes()
    places = sum(int(node.gpus) for node in nodes) if _on_gpu(settings) else len(nodes)
    return max(1, places // settings.workers)


def fit(
    workload: Workload,
    output: str,
    *,
    resume: bool = False,
    side_by_side: int = 1,
    watch: Callable[[Report], None] | None = None,
) -> Progress:
    """Train on the connected cluster; checkpoints, logs and the manifest go to `output` (a folder or URL).

    Args:
        side_by_side: trainings that share the cluster.
        watch: called with every step's report, some time after the step.

    Returns where it ended: before the end only where SIGTERM asked for it.

    Raises:
        InpaintError: `output` holds a run already and `resume` is off, or the cluster can never fit the job.
        ResumeMismatch: the run in `output` began with another manifest or other settings.
    """
    settings = workload.settings
    output = output if "://" in output else str(Path(output).resolve())
    store = CheckpointStore(f"{output}/checkpoints", keep=settings.keep_checkpoints)
    started = _resume_from(workload, store, output, resume)
    total = settings.total_samples(len(workload.manifest))
    if started.samples >= total:
        return started
    check_stop()
    scaling, threads = _scaling(settings, side_by_side)
    workload.manifest.save(f"{output}/{MANIFEST}")
    board = start_board()
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "build": workload.build,
            "settings": settings,
            "start": started,
            "total": total,
            "checkpoints": f"{output}/checkpoints",
            "board": board,
            "threads": threads,
        },
        datasets={"train": _dataset(workload, store, total)},
        dataset_config=data_config(workload.manifest, workload.read),
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            # A fresh name each time: Ray Train then never looks for a snapshot of its own to restore.
            name=f"{workload.name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}",
            storage_path=f"{output}/ray_train",
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            worker_runtime_env={"env_vars": _environment(threads, use_gpu=scaling.use_gpu)},
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    with (
        output_folder(f"{output}/tensorboard") as logs,
        RunConsole(workload.name, logs, start=started.samples, total=total) as console,
        watched(board, console, _stop_requested, watch),
    ):
        _run(trainer, board)
    ended = store.progress()
    assert ended is not None, "a finished run has a checkpoint"
    return ended


def _run(trainer: TorchTrainer, board: Any) -> None:
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        refusal = ray.get(board.refusal.remote())
        if refusal is None:
            raise
        raise InpaintError(refusal) from error


def _resume_from(workload: Workload, store: CheckpointStore, output: str, resume: bool) -> Progress:
    fixed = workload.fixed()
    found = store.progress()
    if found is None:
        versions = {name: importlib.metadata.version(name) for name in VERSIONS}
        manifest = workload.manifest.hash
        seed = workload.settings.seed
        return Progress(samples=0, steps=0, seed=seed, manifest=manifest, run=fixed, versions=versions)
    if not resume:
        raise InpaintError(
            f"{output} holds a run that is at sample {found.samples}: continue it with --resume, or give another output"
        )
    if found.manifest != workload.manifest.hash:
        how = Manifest.load(f"{output}/{MANIFEST}").difference(workload.manifest)
        raise ResumeMismatch(f"{output} began with another manifest: {how}. Restore the data, or start a new output")
    changed = [k for k in fixed.keys() | found.run.keys() if fixed.get(k) != found.run.get(k)]
    if changed:
        was = ", ".join(f"{k} was {found.run.get(k)!r}, now {fixed.get(k)!r}" for k in sorted(changed))
        raise ResumeMismatch(f"{output} began with other settings: {was}. Resume with the old ones, or a new output")
    return found


def check_cluster(settings: TrainSettings) -> None:
    """Raise ClusterTooSmall where the connected cluster can never hold such a training."""
    _scaling(settings, 1)


def _on_gpu(settings: TrainSettings) -> bool:
    return settings.gpu if settings.gpu is not None else any(node.gpus for node in cluster.cluster_nodes())


def _scaling(settings: TrainSettings, side_by_side: int) -> tuple[ray.train.ScalingConfig, int]:
    nodes, use_gpu = cluster.cluster_nodes(), _on_gpu(settings)
    cpus = cluster.plan_workers(settings.workers * side_by_side, use_gpu, nodes)
    gpus = 1.0 if use_gpu else 0.0
    cluster.check_fits(cluster.Needs(workers=settings.workers, cpus_per_worker=cpus, gpus_per_worker=gpus), nodes)
    resources: dict[str, float] = {"CPU": cpus, **({"GPU": gpus} if use_gpu else {})}
    scaling = ray.train.ScalingConfig(num_workers=settings.workers, use_gpu=use_gpu, resources_per_worker=resources)
    return scaling, cluster.worker_threads(cpus)


def _dataset(workload: Workload, store: CheckpointStore, total: int) -> Callable[[], ray.data.Dataset]:
    """Called whenever a worker group starts, so that after a failure reading begins where the checkpoint is."""
    # By reference: Ray Train ships this function.
    manifest, read, settings = ray.put(workload.manifest), workload.read, workload.settings
    layout = StepLayout(
        global_batch=settings.global_batch, max_micro_batch=settings.micro_batch, workers=settings.workers
    )

    def dataset() -> ray.data.Dataset:
        progress = store.progress()
        # A run that failed after its last checkpoint has nothing left to read, but a dataset cannot be empty.
        start = 0 if progress is None else min(progress.samples, total - settings.global_batch)
        return batches(manifest, read, seed=settings.seed, start=start, stop=total, layout=layout)

    return dataset


def _work(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs. What can never succeed is said once, and not tried again."""
    board = config["board"]
    refusal = ray.get(board.refusal.remote())
    if refusal is not None:
        raise InpaintError(refusal)
    try:
        _train(config)
    except (InpaintError, FloatingPointError) as error:
        ray.get(board.refuse.remote(str(error)))
        raise


def _train(config: dict[str, Any]) -> None:
    folder = Path(config["checkpoints"]).parent
    if "://" not in config["checkpoints"] and not folder.is_dir():
        raise InpaintError(f"{folder} cannot be seen from every machine: give a shared folder or a URL as output")
    torch.set_num_threads(config["threads"])
    send_warnings(config["board"])
    settings: TrainSettings = config["settings"]
    device = get_device()
    engine = ZeroEngine(config["build"](device), settings, device)
    store = CheckpointStore(config["checkpoints"], keep=settings.keep_checkpoints)
    found = store.latest()
    progress: Progress = config["start"]
    ema = None if settings.ema_halflife is None else MovingAverage(engine, settings.ema_halflife)
    if found is not None:
        tensors, progress = found
        engine.load(tensors, steps=progress.steps)
        if ema is not None:
            ema.load(tensors["ema"], progress.samples)
    shard = ray.train.get_dataset_shard("train")
    exchange = Exchange(config["board"])
    run = Run(
        settings=settings,
        engine=engine,
        ema=ema,
        store=store,
        batches=iter(shard.iter_batches(batch_size=None, prefetch_batches=4)),
        total=config["total"],
        progress=progress,
        exchange=exchange,
        asked_to_stop=exchange.stop_wished(),
        on_bad_row=lambda position, error: warnings.warn(
            f"position {position} could not be read and counts nothing: {error}", stacklevel=2
        ),
    )
    ended = train(run)
    exchange.flush()
    ray.train.report({"samples": ended.samples, **ended.metrics})


def _environment(threads: int, *, use_gpu: bool) -> dict[str, str]:
    """More threads than cores make a step up to 50 times slower; the rest keeps libraries from talking."""
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore::FutureWarning"}
    few = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    # On CPUs a step allocates and frees the same tensors again and again; given back to the kernel between, their pages
    # are faulted in anew each time, which costs a tenth of the step.
    on_cpu = {"DS_ACCELERATOR": "cpu", "MALLOC_ARENA_MAX": "1"}
    on_cpu |= dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(2**30))
    return {**few, **({} if use_gpu else on_cpu), **quiet}
