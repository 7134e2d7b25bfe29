"""The ingress deployment: the HTTP dialects in front, the painters' handle behind."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import DeploymentStatus

from inpaint.errors import InpaintError
from inpaint.heap import PHOTOS, Trimmer, give_back, started
from inpaint.models.base import read_base_info
from inpaint.serve.adapters.cache import AdapterFiles
from inpaint.serve.adapters.registry import Registry
from inpaint.serve.admission import Admission, Capacity
from inpaint.serve.deployments.finders import RemoteVision
from inpaint.serve.deployments.metrics import IngressMetrics, RequestMetrics
from inpaint.serve.deployments.serve_internals import LOST, listening
from inpaint.serve.dialects.a1111_tasks import TaskAnswer, TaskQuery, Tasks
from inpaint.serve.dialects.paint_http import paint_http
from inpaint.serve.dispatcher import Dispatcher, PainterLost
from inpaint.serve.service import Begun, Painted, PaintOrder, Preview

if TYPE_CHECKING:
    from inpaint.serve.apps.paint import PaintArgs

_LOG = logging.getLogger(__name__)
_WATCH_PERIOD_S = 2.0
_ASK_TIMEOUT_S = 10.0
_FAILED = (DeploymentStatus.UNHEALTHY, DeploymentStatus.DEPLOY_FAILED)


@dataclass(frozen=True, kw_only=True)
class IngressState:
    """Of one of several."""

    replica: str
    """Serve's name for it."""
    outstanding: float
    """U-Net rows that it has let in and that are not done."""
    limit: float
    """U-Net rows that it may have outstanding."""
    scans: int
    """Looks at the registry."""
    digests: dict[str, str]
    """Adapter -> the version that it serves."""


class IngressReplica:
    """A replica."""

    def __init__(self, args: "PaintArgs", painters: DeploymentHandle, finders: DeploymentHandle | None = None) -> None:
        context = serve.get_replica_context()
        self._replica = context.replica_tag
        info = read_base_info(args.base, args.base_revision)
        self._registry = Registry(args.registry_settings, info)
        self._registry.poll()
        self._admission = Admission(args.admission)
        self._names = context.app_name, painters.deployment_name, context.deployment
        give_back(PHOTOS)
        self._painters = painters.options(method_name="paint", stream=True)
        dispatcher = Dispatcher(args.served(info), self._registry, self._admission, self._call)
        self._requests = RequestMetrics(self._replica)
        self._tasks = Tasks(self._ask_ingresses)
        vision = None if finders is None else RemoteVision(finders)
        self._http = paint_http(dispatcher, listening(args.http), self._requests, self._tasks, vision)
        self._metrics = IngressMetrics(self._replica)
        started()
        self._watching = [asyncio.create_task(self._registry.watch()), asyncio.create_task(self._watch())]

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        return self._http

    async def state(self) -> IngressState:
        """How it stands."""
        digests = {name: adapter.digest for name, adapter in self._registry.catalogue().items()}
        return IngressState(
            replica=self._replica,
            outstanding=self._admission.outstanding,
            limit=self._admission.limit,
            scans=self._registry.scans,
            digests=digests,
        )

    async def a1111_tasks(self, query: TaskQuery) -> TaskAnswer:
        """Of the requests that are here."""
        return await self._tasks.answer(query)

    async def _ask_ingresses(self, query: TaskQuery) -> Sequence[TaskAnswer]:
        """Of all ingresses, this one among them. One that has just died has none; where Serve cannot ask, of this one
        alone."""
        application, _, ingress = self._names
        asked = serve.get_deployment_handle(ingress, application).broadcast("a1111_tasks", query)
        try:
            answers = await asked.results_async(timeout_s=_ASK_TIMEOUT_S, return_exceptions=True)
        except (DeploymentUnavailableError, TimeoutError) as error:
            _LOG.warning("the other ingresses cannot be asked: %s", error)
            answers = [await self._tasks.answer(query)]
        return [answer for answer in answers if isinstance(answer, TaskAnswer)]

    async def check_health(self) -> None:
        """Called by Serve every few seconds: replaced where registry or capacity are no longer looked at."""
        for watching in self._watching:
            if watching.done():
                watching.result()  # raises what ended it

    async def _call(
        self, order: PaintOrder, files: tuple[AdapterFiles, ...]
    ) -> AsyncGenerator[Begun | Preview | Painted, None]:
        """One try on one painter, which the router chooses."""
        events = self._painters.remote(order, files)
        try:
            async for event in events:
                yield event
        except RayTaskError as error:
            # What the painter raised, as it is: Ray wraps it in a class of its own making.
            if isinstance(error.cause, InpaintError):
                raise error.cause from None
            raise
        except (*LOST, DeploymentUnavailableError) as error:
            raise PainterLost(str(error).partition("\n")[0]) from error
        except (asyncio.CancelledError, GeneratorExit):
            events.cancel()
            raise

    async def _watch(self) -> None:
        """Keep admission and the gauges up to date."""
        trimmer = Trimmer()
        while True:
            await trimmer.look(self._requests.handled, rests=not self._requests.being_handled)
            capacity = await asyncio.to_thread(capacity_of, *self._names)
            self._admission.capacity = capacity or self._admission.capacity
            self._metrics.record(self._admission, len(self._registry.catalogue()), len(self._registry.refused()))
            await asyncio.sleep(_WATCH_PERIOD_S)


def capacity_of(application: str, painters: str, ingress: str) -> Capacity | None:
    """How many replicas of the two deployments Serve says there are; None where it does not say."""
    try:
        status = serve.status().applications.get(application)
    except (RayError, TimeoutError) as error:  # the controller is being restarted; painting goes on
        _LOG.warning("Serve's controller does not answer: %s", error)
        return None
    if status is None or not {painters, ingress} <= status.deployments.keys():
        return None
    running = {name: status.deployments[name].replica_states.get("RUNNING", 0) for name in (painters, ingress)}
    healthy = running[painters] > 0 or status.deployments[painters].status not in _FAILED
    return Capacity(painters=running[painters], ingresses=max(1, running[ingress]), healthy=healthy)


Ingress = serve.deployment(
    serve.ingress()(IngressReplica),
    name="ingress",
    # The death of one costs only the requests that it had.
    num_replicas=2,
    max_ongoing_requests=1000,
    graceful_shutdown_timeout_s=600,
    graceful_shutdown_wait_loop_s=0.5,
    # It decodes and encodes pictures in threads, between the painters' ticks.
    ray_actor_options={"num_cpus": 0.5},
)
"""The deployment; `serve_config.yaml` overrides what it sets."""
