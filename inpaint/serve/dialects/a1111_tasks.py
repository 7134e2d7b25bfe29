"""A1111's tasks: a client follows and stops requests of its own, and nobody else's.

Own are those of the same API key; with an id (`force_task_id`, which the client gave with its request) that one alone.
Where the service has no keys, nobody can be told apart: then an id is needed, unless one request alone is running.
Where several processes serve, each is asked for those that it has. Source: A1111's public API, `/sdapi/v1/progress`,
`/interrupt`, `/internal/progress`.
"""

import asyncio
import time
from base64 import b64encode
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from pydantic import ConfigDict
from starlette.requests import Request

from inpaint.paint.photos import encode_png
from inpaint.serve.dialects.painting import PaintCall
from inpaint.serve.http.body import parse_json
from inpaint.serve.http.endpoint import Picture
from inpaint.serve.http.keys import NOBODY
from inpaint.serve.http.schema import Fields, Word, read_fields
from inpaint.serve.service import Preview

_REMEMBERED = 1000
_NONE_OWN = "no request of yours is being painted; without API keys, name it with force_task_id"


@dataclass(eq=False, kw_only=True)
class Task:
    """One request while it is painted."""

    id: str
    key: str
    """Name of its API key."""
    call: PaintCall[Any]
    stop: asyncio.Timeout
    """Expires when the client has asked for it."""
    began: float = field(default_factory=time.monotonic)
    shares: dict[int, float] = field(default_factory=dict)
    """Picture -> how much of it is done."""
    newest: Picture | None = None
    """What is there to see."""

    def show(self, picture: Picture) -> None:
        """One on the way, or one that is done."""
        is_preview = isinstance(picture.about, Preview)
        self.shares[picture.number] = (picture.about.index + 1) / (self.call.previews + 1) if is_preview else 1.0
        self.newest = picture

    @property
    def progress(self) -> float:
        """0 to 1."""
        return sum(self.shares.values()) / self.call.n

    @property
    def seconds_left(self) -> float:
        """By what is done; 0 while that is nothing."""
        passed = time.monotonic() - self.began
        return passed / self.progress - passed if self.progress else 0.0

    def look(self, *, shown: bool) -> "TaskLook":
        """How it stands, with what is there to see where it is `shown`, encoded now."""
        image = b64encode(encode_png(self.newest.image)).decode("ascii") if shown and self.newest else None
        return TaskLook(
            id=self.id,
            seconds=time.monotonic() - self.began,
            progress=self.progress,
            seconds_left=self.seconds_left,
            state=self._state(),
            pictures=len(self.shares),
            image=image,
        )

    def _state(self) -> dict[str, Any]:
        """As A1111 tells it."""
        done = sum(share == 1 for share in self.shares.values())
        steps = self.call.request.sampling.steps_taken
        under_way = sum(self.shares.values()) - done
        return {
            "interrupted": self.stop.expired(),
            "job": self.id,
            "job_count": self.call.n,
            "job_no": done,
            "sampling_step": round(steps * min(1, under_way)),
            "sampling_steps": steps,
        }


_IDLE = {"interrupted": False, "job": "", "job_count": 0, "job_no": 0, "sampling_step": 0, "sampling_steps": 0}


@dataclass(frozen=True, kw_only=True)
class TaskLook:
    """How a task stands; plain, for it travels between processes."""

    id: str
    seconds: float
    """Since it began."""
    progress: float
    seconds_left: float
    state: dict[str, Any]
    """As A1111 tells it."""
    pictures: int
    """Begun."""
    image: str | None
    """The newest one: PNG in base64."""


@dataclass(frozen=True, kw_only=True)
class TaskQuery:
    """About a client's tasks."""

    key: str
    """Name of its API key."""
    wanted: str = ""
    """The task of this id alone."""
    shown: bool = False
    """Whether pictures are wanted, too."""
    stop: bool = False
    """Whether they shall stop."""


@dataclass(frozen=True, kw_only=True)
class TaskAnswer:
    """Of one process."""

    running: tuple[TaskLook, ...]
    ended: bool
    """Whether one of the wanted id was there."""


AskEverywhere = Callable[[TaskQuery], Awaitable[Sequence[TaskAnswer]]]
"""What `Tasks.answer` says in each process that serves, this one included."""


class Tasks:
    """Those of one process, and through `everywhere` those of the others; used from its event loop."""

    def __init__(self, everywhere: AskEverywhere | None = None) -> None:
        """Args: everywhere: unset: this process is the only one."""
        self._running: list[Task] = []
        self._ended: deque[tuple[str, str]] = deque(maxlen=_REMEMBERED)
        self._everywhere = everywhere or self._alone

    @contextmanager
    def running(self, task: Task) -> Iterator[Task]:
        """While it is painted."""
        self._running.append(task)
        try:
            yield task
        finally:
            self._running.remove(task)
            self._ended.append((task.key, task.id))

    async def answer(self, query: TaskQuery) -> TaskAnswer:
        """What this process knows, or has stopped."""
        found = [task for task in self._running if task.key == query.key and query.wanted in ("", task.id)]
        if query.stop:
            for task in found:
                task.stop.reschedule(asyncio.get_running_loop().time())
        # The oldest is the one that is shown.
        looks = [await asyncio.to_thread(task.look, shown=query.shown and task is found[0]) for task in found]
        return TaskAnswer(running=tuple(looks), ended=(query.key, query.wanted) in self._ended)

    async def _alone(self, query: TaskQuery) -> Sequence[TaskAnswer]:
        return [await self.answer(query)]

    async def own(self, query: TaskQuery) -> tuple[list[TaskLook], bool]:
        """A client's, oldest first; and whether one of the wanted id has ended."""
        answers = await self._everywhere(query)
        found = sorted((look for one in answers for look in one.running), key=lambda look: -look.seconds)
        is_clear = query.wanted or query.key != NOBODY or len(found) == 1
        return found if is_clear else [], not found and any(one.ended for one in answers)

    async def stop(self, key: str, wanted: str) -> None:
        """Stop a client's."""
        for look in (await self.own(TaskQuery(key=key, wanted=wanted)))[0]:
            await self._everywhere(TaskQuery(key=key, wanted=look.id, stop=True))


class TaskFields(Fields):
    """What `POST /sdapi/v1/interrupt` and `POST /internal/progress` may say."""

    model_config = ConfigDict(extra="ignore")

    id_task: Word = ""
    """`force_task_id` of the request that is meant."""
    live_preview: bool = True


def tasks_router(tasks: Tasks) -> APIRouter:
    """The paths to follow and to stop one's own requests."""
    routes = APIRouter(tags=["a1111"])

    async def fields_of(request: Request) -> TaskFields:
        resources = request.state.resources

        def parse(body: bytes, content_type: str) -> TaskFields:
            return read_fields(TaskFields, parse_json(body) if body else {}, vars(resources.settings))

        fields: TaskFields = await resources.read(request, parse)
        return fields

    @routes.get("/sdapi/v1/progress")
    async def progress(request: Request, id_task: str = "", skip_current_image: str = "") -> dict[str, Any]:
        """Of the request that was sent with `force_task_id=id_task`; else of the oldest that is one's own."""
        shown = skip_current_image.lower() not in ("true", "1")
        own, _ = await tasks.own(TaskQuery(key=request.state.record.key, wanted=id_task, shown=shown))
        task = next(iter(own), None)
        return {
            "progress": task.progress if task else 0.0,
            "eta_relative": task.seconds_left if task else 0.0,
            "state": {"skipped": False, "job_timestamp": "", **(task.state if task else _IDLE)},
            "current_image": task.image if task else None,
            "current_task": task.id if task else None,
            "textinfo": None if task else _NONE_OWN,
        }

    @routes.post("/internal/progress")
    async def internal_progress(request: Request) -> dict[str, Any]:
        """The same, as A1111's own page asks for it: of one's own request with this id."""
        fields = await fields_of(request)
        query = TaskQuery(key=request.state.record.key, wanted=fields.id_task, shown=fields.live_preview)
        own, ended = await tasks.own(query) if fields.id_task else ([], False)
        task = next(iter(own), None)
        return {
            "active": task is not None,
            "queued": False,
            "completed": ended,
            "progress": task.progress if task else None,
            "eta": task.seconds_left if task else None,
            "live_preview": f"data:image/png;base64,{task.image}" if task and task.image else None,
            "id_live_preview": task.pictures if task else -1,
            "textinfo": None if task else "Waiting...",
        }

    @routes.post("/sdapi/v1/interrupt")
    async def interrupt(request: Request) -> dict[str, Any]:
        """Stop one's own requests, or the one of `id_task` (in the query or as JSON); the answer has what is done."""
        fields = await fields_of(request)
        await tasks.stop(request.state.record.key, fields.id_task or request.query_params.get("id_task", ""))
        return {}

    return routes
