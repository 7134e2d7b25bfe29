"""What the workers of a training read, as Ray Train asks for it. Apart from the trainer, because Ray Train's controller
imports this: what a worker needs beside it (diffusers, PEFT) takes seconds to import."""

from typing import Any

import ray.cloudpickle
import ray.train

from inpaint.data.pipeline import batches
from inpaint.data.rows import Manifest
from inpaint.data.sample import ReadSettings
from inpaint.train.checkpoint import CHECKPOINTS, CheckpointStore
from inpaint.train.settings import TrainSettings

TRAIN_ROWS, VALIDATION_ROWS = "manifest.parquet", "validation.parquet"
"""In a training's folder; the second where rows are held out."""


class PlannedReading(ray.train.DataConfig):
    """Which samples each worker of a group gets: asked by Ray Train whenever a group has started, whatever its size.

    By then the first rank has set aside checkpoints that are damaged, so that reading begins at the very sample that
    the workers' checkpoint ends with.
    """

    def __init__(self, read: ReadSettings, train: TrainSettings, output: str, total: int) -> None:
        super().__init__(enable_shard_locality=False)
        # Pickled, for a hole of one's own may stand in a file that imports much.
        self.read = ray.cloudpickle.dumps(read)
        self.train, self.output, self.total = train, output, total

    def configure(
        self, datasets: dict[str, Any], world_size: int, worker_handles: Any, worker_node_ids: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Each rank's shard, by name."""
        progress = CheckpointStore(f"{self.output}/{CHECKPOINTS}").progress()
        # A run that failed after its last checkpoint has nothing left to read, but a dataset cannot be empty.
        start = 0 if progress is None else min(progress.samples, self.total - self.train.global_batch)
        rows, layout = Manifest.load(f"{self.output}/{TRAIN_ROWS}"), self.train.layout(world_size)
        read = ray.cloudpickle.loads(self.read)
        dataset = batches(rows, read, seed=self.train.seed, start=start, stop=self.total, layout=layout)
        return [dict.fromkeys(datasets, shard) for shard in dataset.streaming_split(world_size, equal=True)]
