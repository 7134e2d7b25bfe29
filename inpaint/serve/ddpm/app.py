"""The application that `serve_config.yaml` may name beside the other one: `inpaint.serve.ddpm.app:build`.

One deployment, which reads requests and paints them; each replica holds the model.
"""

import asyncio
import hashlib
from pathlib import Path

import numpy as np
import ray
import torch
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from inpaint.cluster import worker_threads
from inpaint.diffusion.repaint import PixelSampling
from inpaint.paint.request import DdpmRequest
from inpaint.recipes.ddpm import load_ddpm
from inpaint.serve.ddpm.batcher import Batcher
from inpaint.serve.ddpm.routes import Model, build_fill
from inpaint.serve.deployments.metrics import RequestMetrics
from inpaint.serve.wire.settings import HttpSettings


class DdpmArgs(BaseModel):
    """`args` of the application."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    """The output of a training: folder or object-store URL."""
    max_batch: int = Field(default=16, ge=1)
    """Most requests per network call."""
    max_waiting: int = Field(default=256, ge=1)
    """Requests that may wait at a replica; more are told to come back."""
    threads: int | None = Field(default=None, ge=1)
    """Torch threads on CPUs; unset: as many as CPUs that the replica was given."""
    http: HttpSettings = HttpSettings()
    """Limits and keys."""
    health_timeout_s: float = Field(default=60.0, gt=0)
    """A replica whose network has not been called for this long, though asked to, is replaced."""


class DdpmReplica:
    """A replica."""

    def __init__(self, args: DdpmArgs) -> None:
        given = ray.get_runtime_context().get_assigned_resources()
        torch.set_num_threads(args.threads or worker_threads(given.get("CPU", 1)))
        self._args = args
        device = "cuda" if given.get("GPU", 0.0) and torch.cuda.is_available() else "cpu"
        self._painter = load_ddpm(args.model, device=device, max_batch=args.max_batch)
        self._batcher = Batcher(self._painter, max_batch=args.max_batch, max_waiting=args.max_waiting)
        weights = hashlib.sha256()
        for name, tensor in sorted(self._painter.unet.state_dict().items()):
            weights.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        name = Path(args.model).name
        self._model = Model(name=name, revision=weights.hexdigest(), card=self._painter.card)
        self._metrics = RequestMetrics(serve.get_replica_context().replica_tag)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        return build_fill(self._model, self._batcher.fill, self._healthy, self._args.http, self._metrics)

    async def check_health(self) -> None:
        """A real forward, or the next one of the batch that is being painted. Serve replaces the replica otherwise."""
        before = self._batcher.evaluations
        if self._batcher.busy:
            async with asyncio.timeout(self._args.health_timeout_s):
                while self._batcher.busy and self._batcher.evaluations == before:
                    await asyncio.sleep(0.1)
        else:
            await asyncio.wait_for(self._batcher.fill(self._probe()), self._args.health_timeout_s)

    def _probe(self) -> DdpmRequest:
        side = self._painter.card.unet.multiple
        blank = np.zeros((side, side, 3), dtype=np.uint8)
        return DdpmRequest(image=blank, hole=np.ones((side, side), dtype=bool), sampling=PixelSampling(steps=1))

    async def _healthy(self) -> bool:
        try:
            await self.check_health()
        except TimeoutError:
            return False
        return True


def build(args: DdpmArgs) -> serve.Application:
    """The application; replicas, resources and scaling are set in the configuration."""
    folder = args.model if "://" in args.model else str(Path(args.model).resolve())
    return Ddpm.bind(args.model_copy(update={"model": folder}))


Ddpm = serve.deployment(
    serve.ingress()(DdpmReplica),
    name="ddpm",
    max_ongoing_requests=300,
    health_check_timeout_s=120,
    graceful_shutdown_timeout_s=600,
    graceful_shutdown_wait_loop_s=0.5,
    ray_actor_options={"num_cpus": 1},
)
"""The deployment; `serve_config.yaml` overrides what it sets."""
