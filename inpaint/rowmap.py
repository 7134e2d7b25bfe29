"""A resumable map over rows: items in; files, and a line about each item, out. On actors or in this process; in one
stage or in several, each with workers and a done-list of its own, from one to the next of which items stream.

Guaranteed: an item stands in the done-list only when its files are whole in the output, and counts as done only while
they are (on a disk: while they have their hash; at a URL: their size) and its key is the same; a run does what is not
done. An item that cannot be used (BadRow) goes to the quarantine and stops nothing; any other error ends the run, and
what was done stays done. The driver holds one batch of results at a time, and before each later stage `AHEAD` batches
per worker; then the stage before it pauses.
Not covered: at a URL the done-list is written every few seconds, so that a killed run may repeat the last ones.
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from inpaint.cluster import GIGA, Needs, check_together, cluster_nodes, plan_actors, worker_threads
from inpaint.data import quarantine
from inpaint.data.quarantine import Quarantined
from inpaint.data.storage import exists, open_root, read_file, write_file
from inpaint.errors import BadRow, InpaintError
from inpaint.stopping import StopToken
from inpaint.warned import Warned, Warnings, heard

QUARANTINE = "quarantine.jsonl"
MOST_RETRIES = 3
"""Workers that one batch may lose before the run ends."""
WRITERS = 16
"""Files written, or hashed, at a time."""
FLUSH_S = 5.0
"""Least time between two writings of a done-list at a URL."""
AHEAD = 2  # batches per worker that may wait before a later stage


def key_of(*values: object) -> str:
    """Hash of what a result depends on, as JSON says it."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Item:
    """What is to be done for one row."""

    id: str
    """Names it in the done-list; no two items of a run have the same."""
    key: str
    """`key_of` all that its result depends on."""
    value: Any
    """What the worker is given; small, for it travels."""


@dataclass(frozen=True)
class Result:
    """What became of one item."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    """By path below the output."""
    line: Mapping[str, Any] = field(default_factory=dict)
    """What the done-list says of it beside `id`, `key` and `files`; values for JSON."""


@dataclass(frozen=True)
class ActorResources:
    """What a worker may use."""

    device: str
    """`cpu` or `cuda`."""
    threads: int


Outcomes = Sequence[Result | BadRow]
Work = Callable[[list[Any]], Outcomes]
"""A batch of items' values -> what became of each, in their order."""
Then = Callable[[Item, Mapping[str, Any], Callable[[str], bytes]], Item | None]
"""(an item, its line in the done-list, what reads its files by their paths) -> the next stage's item; None: it ends
here."""


@dataclass(frozen=True, kw_only=True)
class ActorPool:
    """What the map takes of the cluster."""

    actors: int | None = None
    """Workers side by side, each with its models; default: as many as the GPUs hold, or one per CPU machine."""
    cpus_per_actor: float | None = None
    """Default: what its machine has, shared among the actors; 1 beside a GPU."""
    gpus_per_actor: float = 1.0
    """Share of a GPU that an actor takes, where the cluster has GPUs; 0 works on CPUs."""
    memory_gb_per_actor: float | None = None
    """Memory that an actor asks Ray for, so that no machine gets more than it holds; unset: none is asked for."""
    max_batch: int = 8
    """Most rows that an actor is given at a time."""

    def __post_init__(self) -> None:
        if (self.actors is not None and self.actors < 1) or self.max_batch < 1:
            raise InpaintError(f"actors {self.actors}, max_batch {self.max_batch}: give at least 1")
        positive = (self.cpus_per_actor, self.memory_gb_per_actor)
        if any(one is not None and one <= 0 for one in positive) or not 0 <= self.gpus_per_actor <= 1:
            raise InpaintError(
                f"cpus_per_actor {self.cpus_per_actor} and memory_gb_per_actor {self.memory_gb_per_actor} must be "
                f"positive, gpus_per_actor {self.gpus_per_actor} 0 to 1"
            )

    def needs(self, batches: int, *, stages: int = 1, data_cpus: int = 0) -> Needs:
        """How many actors of what size on the connected cluster, `data_cpus` left for what feeds them; never more than
        batches. Of several stages each has by default one per GPU, or per CPU machine. Raises ClusterTooSmall."""
        nodes = cluster_nodes()
        gpus, memory = any(node.gpus for node in nodes) * self.gpus_per_actor, (self.memory_gb_per_actor or 0.0) * GIGA
        one = Needs(workers=1, cpus_per_worker=1, gpus_per_worker=gpus, memory_per_worker=memory, data_cpus=data_cpus)
        return plan_actors(self.actors, self.cpus_per_actor, one, nodes, batches=batches, stages=stages)


@dataclass(frozen=True)
class MapReport:
    """What a run did."""

    done: int
    skipped: int
    """Items that an earlier run had done in the same way."""
    quarantined: list[Quarantined]
    warned: tuple[Warned, ...] = ()
    """What its workers warned of."""


def map_rows(
    items: Sequence[Item],
    load: Callable[[ActorResources], Work],
    output: str | Path,
    *,
    name: str,
    pool: ActorPool,
    here: ActorResources | None = None,
    quarantined: Sequence[Quarantined] = (),
    on_progress: Callable[[int, int], None] | None = None,
    stop: StopToken | None = None,
) -> MapReport:
    """Do what is not done in one stage, of this `name`, `load` and `pool`; all else as in `map_stages`."""
    one = [MapStage(name=name, load=load, pool=pool)]
    return map_stages(items, one, output, here=here, quarantined=quarantined, on_progress=on_progress, stop=stop)[0]


@dataclass(frozen=True, kw_only=True)
class MapStage:
    """What workers of one kind do with items."""

    name: str
    """Of its done-list in the output."""
    load: Callable[[ActorResources], Work]
    """Called once per worker, before its first batch; travels there."""
    pool: ActorPool
    """Workers on the connected cluster."""
    then: Then | None = None
    """What the next stage is given of each item that is done here; needed of all stages but the last."""


def map_stages(
    items: Sequence[Item],
    stages: Sequence[MapStage],
    output: str | Path,
    *,
    here: ActorResources | None = None,
    quarantined: Sequence[Quarantined] = (),
    on_progress: Callable[[int, int], None] | None = None,
    stop: StopToken | None = None,
) -> list[MapReport]:
    """Do what is not done, and say of each stage what it did. Neighbours in `items` share a batch.

    Args:
        items: of the first stage.
        output: a folder that this process sees, or a URL.
        here: work in this process instead, without Ray; of the pools only the size of a batch counts.
        quarantined: rows that were set aside before; they are written with those set aside here, and are in the first
            report.
        on_progress: called with (items through with all stages, items to do), those that were done before left out.

    Raises:
        InpaintError: what a worker or `load` raised, an output that is a file, or `stop` was requested.
        ClusterTooSmall: the pools do not fit.
    """
    assert len({item.id for item in items}) == len(items), "one id per item"
    with ThreadPoolExecutor(WRITERS) as threads:
        run = _Run(items, [_Line(stage, str(output), threads) for stage in stages])
        run.lines[0].bad[:0] = quarantined
        through, todo = 0, len(items) - run.ended
        try:
            for line, batch, done in _on_actors(run) if here is None else _here(run, here):
                run.finish(line, batch, done)
                before, through = through, run.ended - len(items) + todo
                if on_progress is not None:
                    for number in range(before, through):
                        on_progress(number + 1, todo)
                if stop is not None and stop.requested and run.is_unfinished:
                    raise InpaintError(f"stopped as asked after {through} of {todo}; run it again, it goes on")
            for line in run.lines:
                line.done_list.forget_the_rest()
        finally:
            for line in run.lines:
                line.done_list.save()
            quarantine.write([bad for line in run.lines for bad in line.bad], f"{output}/{QUARANTINE}")
    return [MapReport(s.done, s.skipped, s.bad, tuple(s.warned.kinds.values())) for s in run.lines]


class _Line:
    """A stage in a run: what waits before it, and what became of what came."""

    def __init__(self, stage: MapStage, output: str, threads: Executor) -> None:
        self.stage, self.done_list = stage, _DoneList(output, stage.name, threads)
        self.arriving: deque[tuple[Item, Mapping[str, Any], Mapping[str, bytes]]] = deque()
        """Done by the stage before: the item there, its line, and its files where they are at hand."""
        self.waiting: deque[Item] = deque()
        self.running = self.done = self.skipped = 0
        self.bad: list[Quarantined] = []
        self.warned = Warnings()

    @property
    def here(self) -> int:
        """Items that are not through."""
        return len(self.arriving) + len(self.waiting) + self.running


class _Run:
    """Items on their way through the stages, and who may do what next."""

    def __init__(self, items: Sequence[Item], lines: list[_Line]) -> None:
        self.lines, self.ended = lines, 0
        self._admit(0, items)
        lines[0].done_list.forget_the_rest()

    @property
    def is_unfinished(self) -> bool:
        return any(line.here for line in self.lines)

    def has_work(self, number: int) -> bool:
        """Whether something waits for a stage; what arrives and was done before is passed on."""
        line = self.lines[number]
        most = line.stage.pool.max_batch
        while line.arriving and len(line.waiting) < most:
            then = self.lines[number - 1].stage.then
            assert then is not None, "a stage before another says what becomes of its items"
            chunk = [line.arriving.popleft() for _ in range(min(most, len(line.arriving)))]
            made = [then(item, told, partial(line.done_list.read, files)) for item, told, files in chunk]
            self.ended += made.count(None)
            self._admit(number, [item for item in made if item is not None])
        return bool(line.waiting)

    def take(self, number: int, actors: int) -> list[Item]:
        """The next batch of a stage; empty where it has to wait for the stage before, or for the one behind."""
        line = self.lines[number]
        most = line.stage.pool.max_batch
        more_comes = any(before.here for before in self.lines[:number])
        if not self.has_work(number) or (len(line.waiting) < most and more_comes):
            return []
        if number + 1 < len(self.lines):
            behind = self.lines[number + 1]
            if behind.here - behind.running >= AHEAD * actors * behind.stage.pool.max_batch:
                return []
        batch = [line.waiting.popleft() for _ in range(min(most, len(line.waiting)))]
        line.running += len(batch)
        return batch

    def finish(self, line: _Line, batch: list[Item], done: "_Done") -> None:
        """Writes what became of a batch, and passes on what was done."""
        for one in done.warned:
            line.warned.add(one)
        pairs = list(zip(batch, done.outcomes, strict=True))
        bad = [Quarantined.of(0, item.id, error) for item, error in pairs if isinstance(error, BadRow)]
        good = [(item, result) for item, result in pairs if isinstance(result, Result)]
        told = line.done_list.add(good)
        line.running -= len(batch)
        line.done += len(good)
        line.bad += bad
        self.ended += len(bad)
        for (item, result), known in zip(good, told, strict=True):
            self._pass_on(line, item, known, result.files)

    def _admit(self, number: int, items: Sequence[Item]) -> None:
        line = self.lines[number]
        known = line.done_list.confirmed(items)
        line.skipped += len(known)
        for item in items:
            if item.id in known:
                self._pass_on(line, item, known[item.id], {})
            else:
                line.waiting.append(item)

    def _pass_on(self, line: _Line, item: Item, told: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        if line is self.lines[-1]:
            self.ended += 1
        else:
            self.lines[self.lines.index(line) + 1].arriving.append((item, told, files))


def _here(run: _Run, resources: ActorResources) -> Iterator[tuple[_Line, list[Item], "_Done"]]:
    workers = [_Worker() for _ in run.lines]
    while run.is_unfinished:
        # The last stage that can: what has begun is ended first.
        for number, line in reversed(list(enumerate(run.lines))):
            if batch := run.take(number, 1):
                values, load = [item.value for item in batch], partial(line.stage.load, resources)
                yield line, batch, _checked(workers[number].work(values, load))
                break


def _on_actors(run: _Run) -> Iterator[tuple[_Line, list[Item], "_Done"]]:
    """Each batch and what became of it, as it is finished."""
    crews: dict[int, _Crew] = {}
    running: dict[Any, tuple[int, Any, list[Item]]] = {}

    def begin(number: int) -> None:
        """Gives a stage's idle actors what there is. They start when it first has work, with those behind it, and do
        nothing first, so that no batch waits for an actor that has not started."""
        if number not in crews and run.has_work(number):
            for later in set(range(number, len(run.lines))) - crews.keys():
                crews[later] = _Crew.start(run, later)
                running.update({crews[later].give(actor, []): (later, actor, []) for actor in crews[later].actors})
            check_together([crew.needs for crew in crews.values()], cluster_nodes())
        crew, behind = crews.get(number), crews.get(number + 1)
        while crew and crew.idle and (batch := run.take(number, len(behind.actors) if behind else 1)):
            actor = crew.idle.pop()
            running[crew.give(actor, batch)] = (number, actor, batch)

    try:
        while run.is_unfinished:
            for number in reversed(range(len(run.lines))):
                begin(number)
            if not running:
                continue  # what was done before was passed on by a stage, and the one behind has yet to look
            (ready,), _ = ray.wait(list(running))
            number, actor, batch = running.pop(ready)
            try:
                done = _checked(ray.get(ready))
            except ray.exceptions.RayActorError as error:
                names = ", ".join(item.id for item in batch)
                raise InpaintError(
                    f"{1 + MOST_RETRIES} workers died of {names or 'their models'}, out of memory perhaps: give a "
                    "smaller max_batch or fewer actors, or leave these out, and run it again; it goes on"
                ) from error
            crews[number].idle.append(actor)
            begin(number)
            if batch:
                yield run.lines[number], batch, done
    finally:
        for crew in crews.values():
            for actor in crew.actors:
                ray.kill(actor)


@dataclass
class _Crew:
    """A stage's actors."""

    actors: list[Any]
    load: Any
    """In Ray's object store, for it may hold an adapter."""
    resources: ActorResources
    needs: Needs
    idle: list[Any] = field(default_factory=list)

    @classmethod
    def start(cls, run: _Run, number: int) -> "_Crew":
        stage = run.lines[number].stage
        most = sum(line.here for line in run.lines[: number + 1])
        needs = stage.pool.needs(-(-most // stage.pool.max_batch), stages=len(run.lines))
        cpus, gpus, memory = needs.cpus_per_worker, needs.gpus_per_worker, int(needs.memory_per_worker) or None
        limits = {"num_cpus": cpus, "num_gpus": gpus, "memory": memory, "max_restarts": -1}
        resources = ActorResources("cuda" if gpus else "cpu", worker_threads(cpus))
        kind = ray.remote(**limits, max_task_retries=MOST_RETRIES)(_Worker)
        return cls([kind.remote() for _ in range(needs.workers)], ray.put(stage.load), resources, needs)

    def give(self, actor: Any, batch: list[Item]) -> Any:
        """Begins a batch on an actor; the task."""
        stored, resources = self.load, self.resources
        return actor.work.remote([item.value for item in batch], lambda: ray.get(stored)(resources))


@dataclass(frozen=True)
class _Done:
    """What became of a batch."""

    outcomes: Outcomes
    warned: tuple[Warned, ...]


class _Worker:
    """One of the pool."""

    def __init__(self) -> None:
        self._work: Work | None = None

    def work(self, values: list[Any], load: Callable[[], Work]) -> _Done | InpaintError:
        """What became of a batch, or why none can be done, as a value: Ray would bury it in a stack trace."""
        if not values:
            return _Done([], ())
        warned = Warnings()
        try:
            with heard(warned.add):
                # Not in the constructor: there an error would only be seen as an actor that does not start.
                self._work = self._work or load()
                return _Done(self._work(values), tuple(warned.kinds.values()))
        except InpaintError as error:
            return error


def _checked(done: _Done | InpaintError) -> _Done:
    if isinstance(done, InpaintError):
        raise done
    return done


class _DoneList:
    """JSON lines in the output, one per item that is done."""

    def __init__(self, output: str, name: str, threads: Executor) -> None:
        self._root, self._name, self._threads = open_root(output), name, threads
        if exists(self._root):
            raise InpaintError(f"output {output}: is a file; give a folder")
        self._unsure = {line["id"]: line for line in self._read()}
        """Of earlier runs, and not yet asked for."""
        self._sizes: dict[str, int | None] | None = None
        self._lines: list[str] = []
        self._due = 0.0

    def confirmed(self, items: Sequence[Item]) -> dict[str, dict[str, Any]]:
        """The lines of the items that are done; what is said of the others is forgotten."""
        found = [(item, line) for item in items if (line := self._unsure.pop(item.id, None)) is not None]
        same = [line for item, line in found if line["key"] == item.key]
        if same and self._sizes is None:
            self._sizes = {path: info.size for path, info in self._root.files().items()}
        whole = self._threads.map(lambda line: self._is_whole(line["files"], self._sizes or {}), same)
        kept = [line for line, is_whole in zip(same, whole, strict=True) if is_whole]
        self._lines += [json.dumps(line) + "\n" for line in kept]
        return {line["id"]: line for line in kept}

    def forget_the_rest(self) -> None:
        """What nobody asked for is not said any more: the list says no more than is true."""
        self._unsure.clear()
        self.save()

    def read(self, files: Mapping[str, bytes], path: str) -> bytes:
        """A file of an item that is done: of those at hand, or from the output."""
        data = files.get(path) if path in files else read_file(self._root, path)
        assert data is not None, f"{path} was whole"
        return data

    def add(self, results: Sequence[tuple[Item, Result]]) -> list[dict[str, Any]]:
        """Write the files, then the lines, which are returned."""
        files = [file for _, result in results for file in result.files.items()]
        list(self._threads.map(lambda file: write_file(self._root, *file), files))
        lines = []
        for item, result in results:
            known = {path: {"bytes": len(data), "sha256": _sha256(data)} for path, data in result.files.items()}
            lines.append(json.dumps({"id": item.id, "key": item.key, **result.line, "files": known}) + "\n")
        self._lines += lines
        if self._root.is_local:
            with open(self._root.join(self._name), "a", encoding="utf-8") as file:
                file.writelines(lines)
        elif time.monotonic() > self._due:
            self.save()
        return [json.loads(line) for line in lines]

    def save(self) -> None:
        """Write the whole list; objects cannot be appended to."""
        started = time.monotonic()
        unsure = (json.dumps(line) + "\n" for line in self._unsure.values())
        write_file(self._root, self._name, "".join([*unsure, *self._lines]).encode())
        now = time.monotonic()
        # A long list takes long: at most a twentieth of the time is spent on it.
        self._due = now + max(FLUSH_S, 20 * (now - started))

    def _read(self) -> Iterator[dict[str, Any]]:
        """The lines that can be read; a line torn by a crash is an item to do again."""
        for text in (read_file(self._root, self._name) or b"").decode(errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and {"id", "key", "files"} <= line.keys():
                yield line

    def _is_whole(self, files: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int | None]) -> bool:
        if any(sizes.get(path) != known["bytes"] for path, known in files.items()):
            return False
        hashed = files.items() if self._root.is_local else ()
        return all(_sha256(Path(self._root.join(path)).read_bytes()) == known["sha256"] for path, known in hashed)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
