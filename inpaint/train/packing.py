"""How many processes train adapters, and how many at once each, by the memory there is; part of the wiring.

A GPU has one process for each share of it that the pool asks for, a CPU machine one, or, where the pool says how many
CPUs each has, as many as its CPUs and its memory hold. What a process then takes is asked of Ray, which packs by it.
Not covered: GPUs of several sizes, of which one is measured; on smaller ones steps are halved (`together.py`).
"""

import math
from dataclasses import replace
from typing import Any

import ray
import ray.exceptions
import torch

from inpaint.cluster import GIGA, cluster_nodes, nodes_hold, worker_threads
from inpaint.device import use_cores
from inpaint.errors import InpaintError
from inpaint.rowmap import ActorPool, ActorResources
from inpaint.train.footprint import Footprint, footprint_of
from inpaint.train.trainer import Training

MOST_TOGETHER = 16
"""Where nobody says."""
_SMALLER = "give a smaller train.max_micro_batch or resolution, train.gradient_checkpointing, or larger machines"


def pack(adapters: int, footprint: Footprint, pool: ActorPool, most: int | None) -> tuple[ActorPool, str]:
    """The pool that trains so many, each process as many at once as its batch; and what was decided, and from what.

    Args:
        most: adapters at once in a process, where there is memory for so many.

    Raises:
        InpaintError: there is no memory for a process with one adapter.
        ClusterTooSmall: the cluster does not hold as many processes as are asked for.
    """
    nodes, one = cluster_nodes(), footprint.of(1)
    on_gpus, given = footprint.device > 0, (pool.memory_gb_per_actor or 0.0) * GIGA
    if on_gpus:
        there, whose = footprint.device * pool.gpus_per_actor, f"{pool.gpus_per_actor:g} of a GPU"
    else:
        there, whose = given or max(node.memory for node in nodes), "memory_gb_per_actor" if given else "a machine"
    if one > there:
        raise InpaintError(f"a process with one adapter takes {_gb(one)}, {whose} has {_gb(there)}: {_SMALLER}")
    asked = pool if on_gpus or given else replace(pool, memory_gb_per_actor=one / GIGA)
    if not on_gpus and pool.actors is None and pool.cpus_per_actor is not None:
        room = sum(node.room(pool.cpus_per_actor, 0.0, given or one) for node in nodes)
        asked = replace(asked, actors=max(1, room))
    needs = asked.needs(adapters)

    def fits(together: int) -> bool:
        takes = footprint.of(together)
        if on_gpus or given:
            return takes <= there
        return nodes_hold(replace(needs, memory_per_worker=takes), nodes)

    each = -(-adapters // needs.workers)
    held = next(count for count in range(min(most or MOST_TOGETHER, each), 0, -1) if fits(count))
    together = -(-each // -(-each // held))  # in as many rounds, but evenly
    processes = min(needs.workers, -(-adapters // together))
    if asked is not pool and not given:
        asked = replace(asked, memory_gb_per_actor=footprint.of(together) / GIGA)
    told = (
        f"{adapters} adapters, {together} at once in each of {processes} process(es): one takes "
        f"{_gb(footprint.base)} and {_gb(footprint.adapter)} for each adapter, "
        + (f"{whose} has {_gb(there)}" if there < math.inf else "what a machine has is not known")
    )
    return replace(asked, actors=processes, max_batch=together), told


def measured(training: Training, pool: ActorPool) -> Footprint:
    """What a process of the pool takes for adapters such as this one, found in one that then ends.

    Raises:
        InpaintError: there is no memory for a step of one adapter, or the base cannot be loaded.
        ClusterTooSmall: the cluster does not hold one process.
    """
    needs = replace(pool, actors=1).needs(1)
    limits: dict[str, Any] = {"num_cpus": needs.cpus_per_worker, "num_gpus": needs.gpus_per_worker}
    resources = ActorResources("cuda" if needs.gpus_per_worker else "cpu", worker_threads(needs.cpus_per_worker))
    task = ray.remote(**limits, max_calls=1, max_retries=0)(_footprint)
    try:
        found: Footprint | InpaintError = ray.get(task.remote(training, resources))
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise InpaintError(f"a process died of one adapter's step, out of memory perhaps: {_SMALLER}") from error
    if isinstance(found, InpaintError):
        raise found
    return found


def _footprint(training: Training, resources: ActorResources) -> Footprint | InpaintError:
    """An error as a value: Ray would bury it in a stack trace."""
    use_cores(resources.threads)
    try:
        return footprint_of(training, torch.device(resources.device))
    except torch.OutOfMemoryError as error:
        return InpaintError(f"a GPU does not hold one adapter's step ({error}): {_SMALLER}")
    except InpaintError as error:
        return error


def _gb(size: float) -> str:
    return f"{size / GIGA:.3g} GB"
