"""The map over rows: every item once, whole files, resumption, the quarantine, any output, any number of actors."""

import json
import os
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pyarrow.fs as pafs
import pytest
import ray

from inpaint import rowmap
from inpaint.cluster import Needs, Node, check_together
from inpaint.data.storage import open_root, read_file, write_file
from inpaint.errors import BadRow, ClusterTooSmall, InpaintError
from inpaint.rowmap import FLUSH_S, ActorPool, ActorResources, Item, MapReport, MapStage, Result, map_rows, map_stages
from inpaint.stopping import StopToken

HERE = ActorResources("cpu", 1)
PAIRS = ActorPool(max_batch=2)


def shout(values: list[str], log: Path) -> list[Result | BadRow]:
    """Writes `NAME.txt` with the name in capitals, notes each batch in `log`; `bad...` cannot be used."""
    with log.open("a") as file:
        file.write(" ".join(values) + "\n")
    if "fatal" in values:
        raise InpaintError("fatal: no such thing")
    for _ in filter("loud".__eq__, values):
        warnings.warn("too loud", stacklevel=1)
    if "poison" in values:
        os._exit(1)
    if "crash" in values and not log.with_name("crashed").exists():
        log.with_name("crashed").touch()
        os._exit(1)
    return [
        BadRow("image", "missing file", f"{value} is not there")
        if value.startswith("bad")
        else Result({f"{value}.txt": value.upper().encode()}, {"length": len(value)})
        for value in values
    ]


def worker(resources: ActorResources, log: Path) -> Callable[[list[str]], list[Result | BadRow]]:
    return partial(shout, log=log)


def items(*names: str, key: str = "k") -> list[Item]:
    return [Item(name, f"{key}/{name}", name) for name in names]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def run(log: Path) -> Callable[..., MapReport]:
    """Runs the map in this process."""

    def run(output: str | Path, wanted: list[Item], **settings: object) -> MapReport:
        settings = {"name": "done.jsonl", "pool": PAIRS, "here": HERE, **settings}
        return map_rows(wanted, partial(worker, log=log), output, **settings)  # type: ignore[arg-type]

    return run


def worked_on(log: Path) -> list[str]:
    """What was worked on since the last look."""
    found = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return found


def lines(output: str | Path, name: str = "done.jsonl") -> dict[str, dict]:
    data = read_file(output, name)
    assert data is not None
    return {line.get("id") or line["name"]: line for line in map(json.loads, data.splitlines())}


@pytest.fixture(params=["folder", "file URL", "object store"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    kinds = {"folder": str(tmp_path / "out"), "file URL": f"file://{tmp_path}/out"}
    return kinds.get(request.param, f"fsspec+memory://{tmp_path.name}/out")


def test_every_item_is_done_once_and_only_what_is_lost_again(run, log, output):
    seen = []
    report = run(output, items("a", "sub/b", "c"), on_progress=lambda *counts: seen.append(counts))
    assert (report.done, report.skipped, report.quarantined) == (3, 0, [])
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert log.read_text() == "a sub/b\nc\n", "neighbours share a batch"
    assert read_file(output, "sub/b.txt") == b"SUB/B"
    line = lines(output)["sub/b"]
    assert (line["key"], line["length"], line["files"]["sub/b.txt"]["bytes"]) == ("k/sub/b", 5, 5)
    worked_on(log)
    again = run(output, items("a", "sub/b", "c"))
    assert (again.done, again.skipped, worked_on(log)) == (0, 3, [])
    write_file(output, "a.txt", b"another length")
    root = open_root(output)
    root.filesystem.delete_file(root.join("sub/b.txt"))
    third = run(output, items("a", "sub/b", "c", "d"))
    assert (third.done, third.skipped, worked_on(log)) == (3, 1, ["a", "sub/b", "d"])
    assert sorted(lines(output)) == ["a", "c", "d", "sub/b"]
    found = root.filesystem.get_file_info(pafs.FileSelector(root.path, recursive=True))
    names = {info.base_name for info in found if info.is_file}
    assert names == {"a.txt", "b.txt", "c.txt", "d.txt", "done.jsonl", "quarantine.jsonl"}, "nothing half-written stays"


def test_what_workers_warn_of_is_counted(run, tmp_path):
    report = run(tmp_path / "out", items("a", "loud", "b", "c"))
    assert [(kind.text, kind.count) for kind in report.warned] == [("too loud", 1)]


def test_files_keep_names_that_mean_something_in_a_url(run, log, output):
    names = ("a b#2", "a b#3", "50%", "50%25", "what?x=1")
    assert run(output, items(*names)).done == 5
    assert [read_file(output, f"{name}.txt") for name in names] == [name.upper().encode() for name in names]
    assert run(output, items(*names)).skipped == 5


def test_a_changed_file_of_the_same_length_is_seen_on_a_disk(run, log, tmp_path):
    run(tmp_path / "out", items("a", "b"))
    worked_on(log)
    (tmp_path / "out" / "a.txt").write_text("B")
    assert run(tmp_path / "out", items("a", "b")).done == 1
    assert worked_on(log) == ["a"]


def test_what_depends_on_something_else_is_done_again_and_the_list_says_no_more_than_is_true(run, log, output):
    run(output, items("a", "b", "c"))
    worked_on(log)
    assert run(output, [*items("a"), *items("b", key="other")]).skipped == 1
    assert worked_on(log) == ["b"]
    assert {name: line["key"] for name, line in lines(output).items()} == {"a": "k/a", "b": "other/b"}


def test_a_line_torn_by_a_crash_is_an_item_to_do_again(run, log, output):
    run(output, items("a", "b"))
    worked_on(log)
    data = read_file(output, "done.jsonl")
    assert data is not None
    write_file(output, "done.jsonl", data[:-10])
    assert run(output, items("a", "b")).done == 1
    assert worked_on(log) == ["b"]


def test_rows_that_cannot_be_used_are_set_aside_and_tried_again_the_next_time(run, log, output):
    (before,) = run(output, items("bad0")).quarantined
    report = run(output, items("a", "bad1", "b"), quarantined=[before])
    assert (report.done, [bad.name for bad in report.quarantined]) == (2, ["bad0", "bad1"])
    assert lines(output, "quarantine.jsonl")["bad1"]["detail"] == "bad1 is not there"
    assert sorted(lines(output)) == ["a", "b"]
    worked_on(log)
    assert run(output, items("a", "bad1", "b")).skipped == 2
    assert worked_on(log) == ["bad1"]


@pytest.mark.parametrize("ending", ["an error", "a stop"])
def test_after_an_end_between_only_the_rest_is_done(run, log, output, ending):
    names = ["a", "b", "c", "fatal" if ending == "an error" else "d", "e"]
    stop = StopToken()
    ask = {"stop": stop, "on_progress": lambda done, total: done == 4 and stop.request()}
    with pytest.raises(InpaintError, match="no such thing" if ending == "an error" else "stopped as asked"):
        run(output, items(*names), **(ask if ending == "a stop" else {}))
    begun = worked_on(log)
    assert begun == names[:4]
    done = sorted(lines(output))
    assert done == (["a", "b"] if ending == "an error" else ["a", "b", "c", "d"])
    rest = [name for name in names if name != "fatal"]
    assert run(output, items(*rest)).skipped == len(done)
    assert worked_on(log) == [name for name in rest if name not in done]


def test_a_killed_run_loses_nothing_on_a_disk_and_the_last_seconds_at_a_url(run, log, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)

    def kill(done: int, total: int) -> None:
        clock.now = FLUSH_S + 1.0  # from the second batch on
        if done == 6:
            monkeypatch.setattr(rowmap._DoneList, "save", lambda self: None)  # nobody tidies up after a kill
            raise Killed

    for output, kept in ((str(tmp_path / "out"), "abcdef"), ("fsspec+memory://killed/out", "abcd")):
        clock.now = 0.0
        monkeypatch.setattr(rowmap, "time", clock)
        with pytest.raises(Killed):
            run(output, items(*"abcdefgh"), on_progress=kill)
        monkeypatch.undo()
        assert sorted(lines(output)) == list(kept)
        assert run(output, items(*"abcdefgh")).skipped == len(kept)


def test_an_output_that_is_a_file_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InpaintError, match="is a file"):
        run(tmp_path / "file", items("a"))


def test_results_do_not_gather_in_memory(tmp_path):
    size = 500_000

    def big(values: list[int]) -> list[Result | BadRow]:
        return [Result({f"{value}": bytes(size)}) for value in values]

    tracemalloc.start()
    try:
        map_rows(
            [Item(str(i), "k", i) for i in range(60)], lambda _: big, tmp_path, name="done.jsonl", pool=PAIRS, here=HERE
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * size


@pytest.mark.parametrize(
    ("asked", "nodes", "batches", "needs"),
    [
        ({}, [Node(2)], 9, (1, 2, 0)),
        ({"actors": 2}, [Node(2)], 9, (2, 1, 0)),
        ({}, [Node(8), Node(8), Node(0)], 9, (2, 8, 0)),
        ({}, [Node(8, 4), Node(8, 4)], 9, (8, 1, 1)),
        ({"gpus_per_actor": 0.5}, [Node(8, 2)], 3, (3, 1, 0.5)),
        ({"gpus_per_actor": 0.0}, [Node(8, 2)], 9, (1, 8, 0)),
        ({}, [Node(8)], 1, (1, 8, 0)),
        ({}, [Node(8), Node(8)], 1, (1, 8, 0)),
        ({"actors": 3}, [Node(4), Node(8)], 9, (3, 4, 0)),
        ({"gpus_per_actor": 0.6}, [Node(8, 2)], 9, (2, 1, 0.6)),
    ],
)
def test_actors_fill_the_cluster(monkeypatch, asked, nodes, batches, needs):
    monkeypatch.setattr(rowmap, "cluster_nodes", lambda: tuple(nodes))
    found = ActorPool(**asked).needs(batches)
    assert (found.workers, found.cpus_per_worker, found.gpus_per_worker) == needs


def test_more_actors_than_fit_are_refused(monkeypatch):
    monkeypatch.setattr(rowmap, "cluster_nodes", lambda: (Node(2),))
    with pytest.raises(ClusterTooSmall, match="3 worker"):
        ActorPool(actors=3).needs(9)


def test_on_actors_nothing_is_lost_when_one_dies_and_errors_keep_their_words(
    ray_cluster, run, log, tmp_path, monkeypatch
):
    names = [f"n{i}" for i in range(11)] + ["crash", "bad"]
    pool = ActorPool(actors=2, max_batch=3)
    report = run(tmp_path / "out", items(*names), pool=pool, here=None)
    assert (report.done, [bad.name for bad in report.quarantined]) == (12, ["bad"])
    assert sorted(lines(tmp_path / "out")) == sorted(names[:12])
    assert (tmp_path / "crashed").exists()
    counts = Counter(worked_on(log))
    assert {name for name, count in counts.items() if count > 1} <= {"n9", "n10", "crash"}, (
        "only the batch that was lost"
    )
    with pytest.raises(InpaintError, match="^fatal: no such thing$"):
        run(tmp_path / "out", items("fatal", *names), pool=pool, here=None)
    monkeypatch.setattr(rowmap, "MOST_RETRIES", 0)
    with pytest.raises(InpaintError, match="1 workers died of poison, m0"):
        run(tmp_path / "out", items("poison", "m0", *names), pool=ActorPool(actors=2, max_batch=2), here=None)
    assert run(tmp_path / "out", items(*names[:12])).skipped == 12
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ray.available_resources()["CPU"] == 2, "actors end with their run"


def count(values: list[tuple[str, bytes]], log: Path) -> list[Result | BadRow]:
    """The second stage: counts what the first one wrote; `few` cannot be used."""
    with log.open("a") as file:
        file.write(" ".join(f"{name}+" for name, _ in values) + "\n")
    return [
        BadRow("image", "too few", name)
        if name == "few"
        else Result({f"{name}.count": b"%d" % len(text)}, {"seen": name})
        for name, text in values
    ]


def counter(resources: ActorResources, log: Path) -> Callable[[list[tuple[str, bytes]]], list[Result | BadRow]]:
    return partial(count, log=log)


def counted(item: Item, line: dict, read: Callable[[str], bytes]) -> Item | None:
    """What becomes of a shouted name; nothing of short ones."""
    text = read(f"{item.id}.txt")
    return None if line["length"] < 3 else Item(item.id, f"{item.key}/{text.decode()}", (item.value, text))


def stages(log: Path) -> list[MapStage]:
    first = MapStage(name="shouted.jsonl", load=partial(worker, log=log), pool=PAIRS, then=counted)
    return [first, MapStage(name="counted.jsonl", load=partial(counter, log=log), pool=PAIRS)]


NAMES = ("abc", "no", "badly", "defg", "few", "hij", "klmno")


def test_items_stream_from_stage_to_stage_and_each_is_done_once(log, tmp_path):
    seen: list[tuple[int, int]] = []
    progress = lambda done, todo: seen.append((done, todo))  # noqa: E731
    first, second = map_stages(items(*NAMES), stages(log), tmp_path / "out", here=HERE, on_progress=progress)
    assert (first.done, second.done, len(first.quarantined), len(second.quarantined)) == (6, 4, 1, 1)
    order = worked_on(log)
    assert Counter(order) == Counter([*NAMES, *(f"{name}+" for name in NAMES if name not in ("no", "badly"))])
    assert order.index("abc+") < order.index("klmno"), "the second stage waits for all of the first"
    assert seen[-1] == (len(NAMES), len(NAMES)) and len(seen) == len(NAMES)
    quarantined = [
        json.loads(line)["name"] for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    ]
    assert sorted(quarantined) == ["badly", "few"]
    again = map_stages(items(*NAMES), stages(log), tmp_path / "out", here=HERE)
    assert [(one.done, one.skipped) for one in again] == [(0, 6), (0, 4)]
    assert Counter(worked_on(log)) == Counter(["badly", "few+"]), "what cannot be used is tried again, nothing else"


def test_stages_go_on_where_each_of_them_ended(log, tmp_path):
    out, stop = tmp_path / "out", StopToken()
    with pytest.raises(InpaintError, match=r"stopped as asked after \d of 7"):
        map_stages(items(*NAMES), stages(log), out, here=HERE, stop=stop, on_progress=lambda done, todo: stop.request())
    begun = worked_on(log)
    assert 0 < len(begun) < 12
    (out / "abc.txt").unlink()
    map_stages(items(*NAMES), stages(log), out, here=HERE)
    rest = worked_on(log)
    assert not set(begun) & set(rest) - {"abc", "badly", "few+"}, "something was done twice"
    assert "abc" in rest and (out / "klmno.count").read_text() == "5"
    lines = [json.loads(line)["id"] for line in (out / "counted.jsonl").read_text().splitlines()]
    assert sorted(lines) == ["abc", "defg", "hij", "klmno"]


def renamed(item: Item, line: dict, read: Callable[[str], bytes]) -> Item:
    return Item(f"{item.id}2", item.key, (f"{item.id}2", b""))


def test_stages_in_which_all_is_done_need_no_actors(log, tmp_path):
    first, second = stages(log)
    again = MapStage(name="again.jsonl", load=second.load, pool=PAIRS)
    lines = [first, replace(second, then=renamed), again]
    for where in (HERE, None):
        reports = map_stages(items("abc", "defg"), lines, tmp_path / "out", here=where)
    assert [(one.done, one.skipped) for one in reports] == [(0, 2)] * 3


def test_a_stage_pauses_while_the_next_one_is_behind(log, tmp_path, monkeypatch):
    monkeypatch.setattr(rowmap, "AHEAD", 1)
    first, last = stages(log)
    slow = MapStage(name=last.name, load=last.load, pool=ActorPool(max_batch=4))
    names = [f"name{number}" for number in range(30)]
    map_stages(items(*names), [first, slow], tmp_path / "out", here=HERE)
    ahead = most = 0
    for word in worked_on(log):
        ahead += -1 if word.endswith("+") else 1
        most = max(most, ahead)
    assert most <= 4 + 2


def test_stages_that_do_not_fit_side_by_side_are_refused():
    one = Needs(workers=1, cpus_per_worker=1.5, data_cpus=0)
    check_together([one], [Node(2)])
    with pytest.raises(ClusterTooSmall, match="2 stages side by side ask for 3 CPU"):
        check_together([one, one], [Node(2)])


@pytest.mark.ray
def test_stages_have_actors_of_their_own(ray_cluster, log, tmp_path):
    small = ActorPool(max_batch=2, cpus_per_actor=0.1)
    lines = [MapStage(name=one.name, load=one.load, pool=small, then=one.then) for one in stages(log)]
    first, second = map_stages(items(*NAMES), lines, tmp_path / "out")
    assert (first.done, second.done) == (6, 4)
    assert Counter(worked_on(log)) == Counter([*NAMES, *(f"{n}+" for n in NAMES if n not in ("no", "badly"))])
