"""The painters' deployment: one base each, and the engine that paints with it."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ray import serve
from ray.serve.config import RequestRouterConfig

from inpaint.data.storage import fetched
from inpaint.errors import InpaintError
from inpaint.heap import TENSORS, Trimmer, give_back, started
from inpaint.models.base import DTYPES, load_base, read_base_info
from inpaint.models.controlnet import load_controlnet
from inpaint.serve.adapters.cache import AdapterCache, AdapterFiles
from inpaint.serve.deployments.metrics import PainterMetrics
from inpaint.serve.deployments.model import own_device, own_threads
from inpaint.serve.deployments.router import AdapterRouter, PainterLoad
from inpaint.serve.deployments.scaling import WORK
from inpaint.serve.engine.engine import Engine, EngineBroken, EngineStats
from inpaint.serve.engine.executor import Executor
from inpaint.serve.engine.torch_executor import TorchExecutor
from inpaint.serve.service import Begun, Painted, PaintOrder, Preview

if TYPE_CHECKING:
    from inpaint.serve.apps.paint import PaintArgs

METRICS_PERIOD_S = 2.0
_LOG = logging.getLogger(__name__)


class PainterReplica:
    """A replica. Serve stops it only when its last order is done, or after `graceful_shutdown_timeout_s`."""

    def __init__(self, args: "PaintArgs") -> None:
        executor, self._cache = _with_torch(args) if args.onnx is None else _on_onnx(args, args.onnx)
        give_back(TENSORS)
        self._health_timeout_s = args.health_timeout_s
        self._metrics = PainterMetrics(serve.get_replica_context().replica_tag)
        self._engine = Engine(executor)
        self._engine.start()
        started()
        self._measuring = asyncio.create_task(self._measure())

    async def paint(
        self, order: PaintOrder, files: tuple[AdapterFiles, ...] = ()
    ) -> AsyncGenerator[Begun | Preview | Painted, None]:
        """The order's events; closing it, or cancelling the call, takes the order off within a tick. `files`
        are adapters that a painter could not find when it was asked before."""
        for version in files:
            await asyncio.to_thread(self._cache.put, version)
        try:
            async with aclosing(self._engine.paint(order)) as events:
                async for event in events:
                    yield event
        except EngineBroken as error:
            self._die(error)

    async def stats(self) -> EngineStats:
        """What the engine has done and has to do."""
        return self._engine.stats()

    async def check_health(self) -> None:
        """A real forward. Serve replaces the painter where this raises."""
        if self._measuring.done():
            self._measuring.result()  # raises what ended it
        try:
            await self._engine.check(self._health_timeout_s)
        except EngineBroken as error:
            self._die(error)

    def record_routing_stats(self) -> PainterLoad:
        """For `AdapterRouter`."""
        return PainterLoad(remaining=self._engine.stats().remaining_work, adapters=sorted(self._engine.resident()))

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For `scaling.ByRemainingWork`."""
        return {WORK: self._engine.stats().remaining_work}

    def _die(self, error: EngineBroken) -> NoReturn:
        """At once: Serve would let it fail for half a minute, and its empty queue would draw orders meanwhile."""
        _LOG.critical("this painter ends, for its engine has: %s", error)
        os._exit(1)

    async def _measure(self) -> None:
        trimmer = Trimmer()
        while True:
            stats = self._engine.stats()
            self._metrics.record(stats)
            await trimmer.look(stats.ticks, rests=not stats.queued + stats.running)
            await asyncio.sleep(METRICS_PERIOD_S)

    def __del__(self) -> None:
        # Serve calls it at the end of a graceful shutdown, and where the constructor has failed.
        if "_engine" in vars(self):
            self._engine.close(drain=False)


def _with_torch(args: "PaintArgs") -> tuple[Executor, AdapterCache]:
    device = own_device(args.threads, args.device)
    base = load_base(args.base, revision=args.base_revision, dtype=DTYPES[args.precision], device=device)
    controlnet = None
    if args.controlnet is not None:
        controlnet = load_controlnet(args.controlnet, base, args.controlnet_revision)
    cache = args.registry_settings.open_cache(base.info)
    return TorchExecutor(base, args.engine, cache.load, controlnet), cache


def _on_onnx(args: "PaintArgs", where: str) -> tuple[Executor, AdapterCache]:
    """The base itself is not loaded. Args: where: folder or URL of an export."""
    if not all(map(find_spec, ("onnx", "onnxruntime"))):
        raise InpaintError("onnx: its packages are not installed on this node: pip install 'inpaint[onnx]'")
    from inpaint.serve.engine.onnx_executor import OnnxExecutor

    threads, info = own_threads(args.threads), read_base_info(args.base, args.base_revision)
    cache = args.registry_settings.open_cache(info)
    folder = fetched(where) if "://" in where else Path(where)
    return OnnxExecutor(folder, info, args.precision, args.engine, cache.load, threads=threads), cache


Painters = serve.deployment(
    PainterReplica,
    name="painters",
    # Orders wait in the engine, which batches them, and not in front of it; admission bounds them by their work.
    max_ongoing_requests=1000,
    health_check_period_s=10,
    health_check_timeout_s=120,
    # As long as the longest request: `http.max_timeout_s`.
    graceful_shutdown_timeout_s=600,
    graceful_shutdown_wait_loop_s=0.5,
    ray_actor_options={"num_cpus": 1},
    request_router_config=RequestRouterConfig(
        request_router_class=AdapterRouter, request_routing_stats_period_s=0.5, request_routing_stats_timeout_s=30
    ),
)
"""The deployment; `serve_config.yaml` overrides what it sets."""
