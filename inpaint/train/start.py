"""Where a Ray Train worker starts: its reading is set going, and only then what takes seconds to import and to load.

Ray Train's own processes import this file, too, so that torch, diffusers and the like are not needed here: the recipe
and the holes, with which they come, travel pickled.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.cloudpickle
import ray.train

from inpaint.data.latents import LatentSpec, StoredLatents, Variants
from inpaint.data.pipeline import SharedRows, Stage, batches
from inpaint.data.plan import Plan
from inpaint.data.rows import Manifest
from inpaint.data.sample import ReadSettings
from inpaint.errors import InpaintError
from inpaint.train.channel import sent_warnings
from inpaint.train.checkpoint import CHECKPOINTS, CheckpointStore
from inpaint.train.encoding import Encoding, Latents
from inpaint.train.settings import TrainSettings

TRAIN_ROWS, VALIDATION_ROWS = "manifest.parquet", "validation.parquet"
"""In a training's folder; the second where rows are held out."""


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What every worker of a training is told."""

    train: TrainSettings
    total: int
    """Samples of the whole run."""
    output: str
    cache: str | None
    """Of latents that were encoded before."""
    channel: Any
    threads: int
    """Of torch."""
    pickled: bytes
    """The bound recipe, and the progress to start from where there is no checkpoint."""

    @property
    def store(self) -> CheckpointStore:
        return CheckpointStore(f"{self.output}/{CHECKPOINTS}", keep=self.train.keep_checkpoints)


@dataclass(frozen=True, kw_only=True)
class LatentReading:
    """Latents that are read or made on the way to the workers; by default none are."""

    cache: str | None = None
    """Where they were encoded before; unset: nowhere."""
    spec: LatentSpec | None = None
    """Of those."""
    stage: Stage | None = None
    """What makes them beside the training."""

    @classmethod
    def of_cache(cls, encoding: Encoding | None) -> "LatentReading":
        """Args: encoding: has filled its cache where it has one; else latents are the objective's affair."""
        if encoding is None or encoding.latents is not Latents.CACHED:
            return cls()
        return cls(cache=encoding.cache, spec=encoding.spec)

    def stored(self, rows: Manifest, read: ReadSettings, plan: Plan, span: range) -> StoredLatents | None:
        """Those of a training's positions that were encoded before."""
        if self.cache is None or self.spec is None:
            return None
        variants = Variants.of(rows, read, self.spec, plan, span)
        return StoredLatents.find(variants, rows, self.cache)


class PlannedReading(ray.train.DataConfig):
    """Which samples each worker of a group gets: asked by Ray Train whenever a group has started, whatever its size.

    By then the first rank has set aside checkpoints that are damaged, so that reading begins at the very sample that
    the workers' checkpoint ends with.
    """

    def __init__(
        self, read: ReadSettings, config: WorkerConfig, latents: LatentReading, decoded: SharedRows | None = None
    ) -> None:
        super().__init__(enable_shard_locality=False)
        # Pickled, for a hole of one's own may stand in a file that imports much.
        self.read, self.config, self.latents = ray.cloudpickle.dumps(read), config, latents
        self.decoded = decoded

    def configure(
        self, datasets: dict[str, Any], world_size: int, worker_handles: Any, worker_node_ids: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Each rank's shard, by name."""
        config, train, progress = self.config, self.config.train, self.config.store.progress()
        # A run that failed after its last checkpoint has nothing left to read, but a dataset cannot be empty.
        start = 0 if progress is None else min(progress.samples, config.total - train.global_batch)
        rows, layout = Manifest.load(f"{config.output}/{TRAIN_ROWS}"), train.layout(world_size)
        read, plan = ray.cloudpickle.loads(self.read), Plan.of(rows, train.seed, train.global_batch)
        stored = self.latents.stored(rows, read, plan, range(start, config.total))
        dataset = batches(
            rows,
            read,
            seed=train.seed,
            start=start,
            stop=config.total,
            layout=layout,
            stored=stored,
            encoding=self.latents.stage,
            decoded=self.decoded,
        )
        return [dict.fromkeys(datasets, shard) for shard in dataset.streaming_split(world_size, equal=True)]


def work(arguments: dict[str, WorkerConfig]) -> None:
    """What each Ray Train worker runs. What can never succeed is told to the channel, and not tried again."""
    config = arguments["config"]
    if ray.get(config.channel.refusal.remote()) is not None:
        return
    try:
        with sent_warnings(config.channel):
            _work(config)
    except (InpaintError, FloatingPointError) as error:
        ray.get(config.channel.refuse.remote(str(error)))
        if ray.train.get_context().get_world_size() > 1:
            raise  # the others may wait for this one; Ray Train starts all again, and they end above


def _work(config: WorkerConfig) -> None:
    for setting, where in (("output", config.output), ("encoding.cache", config.cache)):
        if where is not None and "://" not in where and not Path(where).is_dir():
            raise InpaintError(f"{where} cannot be seen from every machine: give a shared folder or a URL as {setting}")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(config.threads)
    found = config.store.latest(set_aside=dist.get_rank() == 0)
    # Reading begins where the newest checkpoint ends, and damaged ones are none any more.
    dist.barrier()
    shard = ray.train.get_dataset_shard("train").iter_batches(batch_size=None, prefetch_batches=4)
    begun = _begun(iter(shard))
    from inpaint.train.worker import train_on

    train_on(begun, config, found)


def _begun(shard: Iterator[Any]) -> Iterator[Any]:
    """The same batches, the first of which is asked for now, by another thread."""
    thread = ThreadPoolExecutor(1)
    first = thread.submit(next, shard)
    thread.shutdown(wait=False)

    def all_of_them() -> Iterator[Any]:
        yield first.result()
        yield from shard

    return all_of_them()
