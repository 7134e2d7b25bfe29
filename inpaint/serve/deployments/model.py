"""A deployment for an application whose replicas are alike: each holds a model, with its HTTP side in front.

Model.options(name="ddpm").bind(DdpmApplication.start, args)
"""

from collections.abc import Callable
from typing import Any, Protocol

import ray
import torch
from fastapi import FastAPI
from ray import serve

from inpaint.cluster import worker_threads
from inpaint.heap import TENSORS, Trimmer, give_back, started
from inpaint.serve.deployments.metrics import RequestMetrics
from inpaint.serve.deployments.serve_internals import listening
from inpaint.serve.http.resources import HttpMetrics


class ModelApplication(Protocol):
    """What a replica runs."""

    def http(self, metrics: HttpMetrics) -> FastAPI:
        """Its HTTP side."""
        ...

    async def check(self) -> bool:
        """Whether real work is done in time; Serve replaces the replica where it is not."""
        ...


def own_threads(threads: int | None) -> int:
    """Of a replica: as many as CPUs that Serve gave it, where they are not named; torch has as many from now on."""
    given = ray.get_runtime_context().get_assigned_resources()
    threads = threads or worker_threads(given.get("CPU", 1))
    torch.set_num_threads(threads)
    return threads


def own_device(threads: int | None, wanted: str = "auto") -> str:
    """The device that Serve gave this replica, or the wanted one; of a GPU no more memory than its share, of CPUs
    `own_threads`."""
    own_threads(threads)
    gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
    device = ("cuda" if gpus and torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    if device == "cuda" and 0 < gpus < 1:
        torch.cuda.set_per_process_memory_fraction(gpus)
    return device


class ModelReplica:
    """A replica."""

    def __init__(self, start: Callable[[Any, str], ModelApplication], args: Any) -> None:
        """Args: start: makes the application of its arguments and a torch device. args: a pydantic model with `threads`
        and `http`."""
        give_back(TENSORS)
        args = args.model_copy(update={"http": listening(args.http)})
        self._application = start(args, own_device(args.threads))
        self._metrics = RequestMetrics(serve.get_replica_context().replica_tag)
        self._trimmer = Trimmer()
        started()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        return self._application.http(self._metrics)

    async def check_health(self) -> None:
        """Called by Serve every few seconds."""
        if not await self._application.check():
            raise TimeoutError("no work was done in time")
        await self._trimmer.look(self._metrics.handled, rests=not self._metrics.being_handled)


Model = serve.deployment(
    serve.ingress()(ModelReplica),
    name="model",
    max_ongoing_requests=300,
    health_check_timeout_s=120,
    graceful_shutdown_timeout_s=600,
    graceful_shutdown_wait_loop_s=0.5,
    ray_actor_options={"num_cpus": 1},
)
"""The deployment; `serve_config.yaml` overrides what it sets."""
