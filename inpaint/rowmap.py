"""A resumable map over rows: items in; files, and a line about each item, out. On actors or in this process.

Guaranteed: an item stands in the done-list only when its files are whole in the output, and counts as done only while
they are (on a disk: while they have their hash; at a URL: their size) and its key is the same; a run does what is not
done. An item that cannot be used (BadRow) goes to the quarantine and stops nothing; any other error ends the run, and
what was done stays done. The driver holds one batch of results at a time.
Not covered: at a URL the done-list is written every few seconds, so that a killed run may repeat the last ones.
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from inpaint.cluster import Needs, check_fits, cluster_nodes, plan_workers, worker_threads
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


@dataclass(frozen=True, kw_only=True)
class ActorPool:
    """What the map takes of the cluster."""

    actors: int | None = None
    """Workers side by side, each with its models; default: as many as the GPUs hold, or one per CPU machine."""
    cpus_per_actor: float | None = None
    """Default: what its machine has, shared among the actors; 1 beside a GPU."""
    gpus_per_actor: float = 1.0
    """Share of a GPU that an actor takes, where the cluster has GPUs; 0 works on CPUs."""
    max_batch: int = 8
    """Most rows that an actor is given at a time."""

    def __post_init__(self) -> None:
        if (self.actors is not None and self.actors < 1) or self.max_batch < 1:
            raise InpaintError(f"actors {self.actors}, max_batch {self.max_batch}: give at least 1")
        if (self.cpus_per_actor is not None and self.cpus_per_actor <= 0) or not 0 <= self.gpus_per_actor <= 1:
            raise InpaintError(
                f"cpus_per_actor {self.cpus_per_actor} must be positive, gpus_per_actor {self.gpus_per_actor} 0 to 1"
            )

    def needs(self, batches: int) -> Needs:
        """How many actors of what size on the connected cluster; never more than batches. Raises ClusterTooSmall."""
        nodes = cluster_nodes()
        gpus = self.gpus_per_actor if any(node.gpus for node in nodes) else 0.0
        room = [node.room(self.cpus_per_actor or 1.0, gpus) for node in nodes]
        most = sum(room) if gpus else sum(count > 0 for count in room)
        actors = min(self.actors or max(1, most), batches)
        cpus = self.cpus_per_actor or (1.0 if gpus else max(1.0, plan_workers(actors, False, nodes, data_cpus=0)))
        needs = Needs(workers=actors, cpus_per_worker=cpus, gpus_per_worker=gpus, data_cpus=0)
        check_fits(needs, nodes)
        return needs


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
    """Do what is not done. Neighbours in `items` share a batch.

    Args:
        load: called once per worker, before its first batch; travels there.
        output: a folder that this process sees, or a URL.
        name: of the done-list in it.
        pool: workers on the connected cluster.
        here: work in this process instead, without Ray; of the pool only the size of a batch counts.
        quarantined: rows that were set aside before; they are written with those set aside here.
        on_progress: called with (items finished, items to do), those skipped left out.

    Raises:
        InpaintError: what a worker or `load` raised, an output that is a file, or `stop` was requested.
        ClusterTooSmall: the pool does not fit.
    """
    assert len({item.id for item in items}) == len(items), "one id per item"
    bad, warned = list(quarantined), Warnings()
    with ThreadPoolExecutor(WRITERS) as threads:
        done_list = _DoneList(str(output), name, threads)
        skipped = done_list.keep(items)
        todo = [item for item in items if item.id not in skipped]
        batches = [todo[start : start + pool.max_batch] for start in range(0, len(todo), pool.max_batch)]
        finished = 0
        try:
            for batch, done in _on_actors(batches, load, pool) if here is None else _here(batches, load, here):
                for one in done.warned:
                    warned.add(one)
                pairs = list(zip(batch, done.outcomes, strict=True))
                bad += [Quarantined.of(0, item.id, error) for item, error in pairs if isinstance(error, BadRow)]
                done_list.add([(item, result) for item, result in pairs if isinstance(result, Result)])
                for _ in pairs:
                    finished += 1
                    if on_progress is not None:
                        on_progress(finished, len(todo))
                if stop is not None and stop.requested and finished < len(todo):
                    raise InpaintError(f"stopped as asked after {finished} of {len(todo)}; run it again, it goes on")
        finally:
            done_list.save()
            quarantine.write(bad, f"{output}/{QUARANTINE}")
    return MapReport(finished + len(quarantined) - len(bad), len(skipped), bad, tuple(warned.kinds.values()))


def _here(
    batches: Sequence[list[Item]], load: Callable[[ActorResources], Work], resources: ActorResources
) -> Iterator[tuple[list[Item], "_Done"]]:
    worker = _Worker()
    for batch in batches:
        yield batch, _checked(worker.work([item.value for item in batch], lambda: load(resources)))


def _on_actors(
    batches: Sequence[list[Item]], load: Callable[[ActorResources], Work], pool: ActorPool
) -> Iterator[tuple[list[Item], "_Done"]]:
    """Each batch and what became of it, as it is finished."""
    if not batches:
        return
    needs = pool.needs(len(batches))
    resources = ActorResources("cuda" if needs.gpus_per_worker else "cpu", worker_threads(needs.cpus_per_worker))
    stored = ray.put(load)  # once, for it may hold an adapter
    limits = {"num_cpus": needs.cpus_per_worker, "num_gpus": needs.gpus_per_worker}
    kind = ray.remote(**limits, max_restarts=-1, max_task_retries=MOST_RETRIES)(_Worker)
    actors = [kind.remote() for _ in range(needs.workers)]
    running: dict[Any, tuple[Any, list[Item]]] = {}

    def begin(actor: Any, batch: list[Item]) -> None:
        done = actor.work.remote([item.value for item in batch], lambda: ray.get(stored)(resources))
        running[done] = (actor, batch)

    # Nothing is done as soon as an actor has started, so that no batch waits for one that has not.
    for actor in actors:
        begin(actor, [])
    waiting = deque(batches)
    unfinished = len(batches)
    try:
        while unfinished:
            (ready,), _ = ray.wait(list(running))
            actor, batch = running.pop(ready)
            try:
                done = _checked(ray.get(ready))
            except ray.exceptions.RayActorError as error:
                names = ", ".join(item.id for item in batch)
                raise InpaintError(
                    f"{1 + MOST_RETRIES} workers died of {names or 'their models'}, out of memory perhaps: give a "
                    "smaller max_batch or fewer actors, or leave these out, and run it again; it goes on"
                ) from error
            if waiting:
                begin(actor, waiting.popleft())
            if batch:
                unfinished -= 1
                yield batch, done
    finally:
        for actor in actors:
            ray.kill(actor)


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
        self._lines: list[str] = []
        self._due = 0.0

    def keep(self, items: Sequence[Item]) -> set[str]:
        """Ids of the items that are done. All else is dropped from the list, so that it says no more than is true."""
        found = {line["id"]: line for line in self._read()}
        same = [found[item.id] for item in items if item.id in found and found[item.id]["key"] == item.key]
        sizes = {path: info.size for path, info in self._root.files().items()} if same else {}
        whole = self._threads.map(lambda line: self._is_whole(line["files"], sizes), same)
        kept = [line for line, is_whole in zip(same, whole, strict=True) if is_whole]
        self._lines = [json.dumps(line) + "\n" for line in kept]
        self.save()
        return {line["id"] for line in kept}

    def add(self, results: Sequence[tuple[Item, Result]]) -> None:
        """Write the files, then the lines."""
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

    def save(self) -> None:
        """Write the whole list; objects cannot be appended to."""
        started = time.monotonic()
        write_file(self._root, self._name, "".join(self._lines).encode())
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
