"""Where a Ray Train worker starts: its reading is set going, and only then what takes seconds to import and to load.

Ray Train's own processes import this file and `planned_reading.py`, so that diffusers and the like are not needed here:
the recipe, with which they come, travels pickled.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.cloudpickle
import ray.train
import torch
import torch.distributed as dist

from inpaint.errors import InpaintError
from inpaint.train.channel import send_warnings
from inpaint.train.checkpoint import CHECKPOINTS, CheckpointStore
from inpaint.train.settings import TrainSettings


@dataclass(frozen=True)
class WorkerConfig:
    """What every worker of a training is told."""

    train: TrainSettings
    total: int
    """Samples of the whole run."""
    output: str
    channel: Any
    pickled: bytes
    """The bound recipe, and the progress to start from where there is no checkpoint."""


def work(arguments: dict[str, Any]) -> None:
    """What each Ray Train worker runs. What can never succeed is said once, and not tried again."""
    config: WorkerConfig = arguments["config"]
    refusal = ray.get(config.channel.refusal.remote())
    if refusal is not None:
        raise InpaintError(refusal)
    try:
        _work(config, arguments["threads"])
    except (InpaintError, FloatingPointError) as error:
        ray.get(config.channel.refuse.remote(str(error)))
        raise


def _work(config: WorkerConfig, threads: int) -> None:
    if "://" not in config.output and not Path(config.output).is_dir():
        raise InpaintError(
            f"{config.output} cannot be seen from every machine: give a shared folder or a URL as output"
        )
    torch.set_num_threads(threads)
    send_warnings(config.channel)
    store = CheckpointStore(f"{config.output}/{CHECKPOINTS}", keep=config.train.keep_checkpoints)
    found = store.latest(set_aside=dist.get_rank() == 0)
    # Reading begins where the newest checkpoint ends, and damaged ones are none any more.
    dist.barrier()
    batches = ray.train.get_dataset_shard("train").iter_batches(batch_size=None, prefetch_batches=4)
    begun = _begun(iter(batches))
    from inpaint.train.worker import train_on

    train_on(begun, config, store, found, threads)


def _begun(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches, the first of which is asked for now, by another thread."""
    thread = ThreadPoolExecutor(1)
    first = thread.submit(next, batches)
    thread.shutdown(wait=False)

    def all_of_them() -> Iterator[Any]:
        yield first.result()
        yield from batches

    return all_of_them()
