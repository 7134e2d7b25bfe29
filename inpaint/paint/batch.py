"""Painting a CSV or a folder on Ray Data actors: each holds the base and paints batches of rows.

Guaranteed: one picture per usable row, its kept pixels bit for bit the input's; a row's picture does not depend on
the number of actors; bad rows go to `quarantine.jsonl` and stop nothing; a second run paints what is not done.
Not covered: an output folder that the driver cannot see (give a shared one, or copy it afterwards).
"""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
import torch

from inpaint.cluster import Needs, check_fits, cluster_nodes, worker_threads
from inpaint.data import quarantine
from inpaint.data.decode import DEFAULT_LIMITS, Limits
from inpaint.data.pipeline import read_manifest
from inpaint.data.quarantine import Quarantined
from inpaint.data.sources import Source
from inpaint.errors import BadRow, InpaintError
from inpaint.models.info import read_base_info
from inpaint.models.locate import absolute_name
from inpaint.paint.painter import Painter
from inpaint.paint.paste import comparison, kept_pixels_changed
from inpaint.paint.results import QUARANTINE, Painted, Results, picture_hash
from inpaint.paint.rows import (
    encode_png,
    load_painter,
    read_adapter,
    read_row,
    request_of,
    wanted_revision,
)
from inpaint.paint.tasks import PaintSettings, PaintTask, checked_output_folder, plan_tasks


@dataclass(frozen=True, kw_only=True)
class PaintCluster:
    """What painting takes of the cluster."""

    actors: int | None = None
    """Painters side by side, each with the whole base; default: as many as the GPUs hold, or one per CPU machine."""
    cpus_per_actor: float | None = None
    """Default: what its machine has, shared among the actors; 1 beside a GPU."""
    gpus_per_actor: float = 1.0
    """Share of a GPU that an actor takes, where the cluster has GPUs; 0 paints on CPUs."""
    max_batch: int = 8
    """Most rows per U-Net call."""

    def __post_init__(self) -> None:
        if (self.actors is not None and self.actors < 1) or self.max_batch < 1:
            raise InpaintError(f"actors {self.actors}, max_batch {self.max_batch}: give at least 1")
        if (self.cpus_per_actor is not None and self.cpus_per_actor <= 0) or not 0 <= self.gpus_per_actor <= 1:
            raise InpaintError(
                f"cpus_per_actor {self.cpus_per_actor} must be positive, gpus_per_actor {self.gpus_per_actor} 0 to 1"
            )


@dataclass(frozen=True)
class PaintReport:
    """What a run did."""

    painted: int
    skipped: int
    """Rows that an earlier run had painted in the same way."""
    quarantined: list[Quarantined]


def paint_dataset(
    source: Source,
    settings: PaintSettings,
    output: str | Path,
    *,
    cluster: PaintCluster | None = None,
    limits: Limits = DEFAULT_LIMITS,
    on_progress: Callable[[int, int], None] | None = None,
) -> PaintReport:
    """Paints every usable row of `source` into `output`: pictures, comparisons, `painted.jsonl`, `quarantine.jsonl`.

    Where a row has an `input`, that is the photo which is painted on; else its image is. Without a mask all but a
    random centre crop is painted, as in training.

    Args:
        on_progress: called with (rows finished, rows to do), skipped rows left out.

    Raises:
        InpaintError: no usable row; settings, a base, an adapter or an output folder that cannot be used.
    """
    folder = checked_output_folder(output)
    adapter = read_adapter(settings)
    info = read_base_info(settings.base, wanted_revision(settings, adapter))
    settings = replace(settings, base=absolute_name(settings.base), sampling=settings.sampling.resolved(info))
    models = info.revision
    if adapter is not None:
        models += f" {sorted(adapter.card.files.items())}"
    folder.mkdir(parents=True, exist_ok=True)
    manifest, bad = read_manifest(source, limits=limits, max_bad_fraction=1.0, quarantine=str(folder / QUARANTINE))
    total = len(manifest) + len(bad)
    tasks, unknown = plan_tasks(manifest, settings, models, None if adapter is None else adapter.card)
    bad += unknown
    results = Results(folder)
    done = results.keep_done(tasks)
    todo = [task for task in tasks if task.row.id not in done]
    # The adapter goes to the actors by value: their machines need not see its folder.
    load = partial(load_painter, settings, adapter)
    lines = _paint_all(todo, settings, load, cluster or PaintCluster(), limits)
    for finished, line in enumerate(lines, start=1):
        if line.get("refused"):
            raise InpaintError(line["refused"])
        if line["failure"]:
            bad.append(Quarantined(row=0, name=line["id"], **json.loads(line["failure"])))
        else:
            values = {name: line[name] for name in Painted.__dataclass_fields__}
            results.add(Painted(**values), line["picture"], line["comparison"])
        if on_progress is not None:
            on_progress(finished, len(todo))
    quarantine.write(bad, folder / QUARANTINE)
    quarantine.check(bad, total, 1.0, str(folder / QUARANTINE))
    return PaintReport(total - len(bad) - len(done), len(done), bad)


class PaintActor:
    """Holds a painter and paints batches of tasks; each batch is read and encoded by threads around one painting."""

    def __init__(
        self,
        *,
        settings: PaintSettings,
        load: Callable[..., Painter],
        limits: Limits,
        cpus: float,
        use_gpu: bool,
        max_batch: int,
    ) -> None:
        self.settings, self.limits = settings, limits
        # Ray sets OMP_NUM_THREADS from whole CPUs only, and torch may have read it before.
        torch.set_num_threads(worker_threads(cpus))
        self.threads = ThreadPoolExecutor(worker_threads(cpus))
        self.load = partial(load, device="cuda" if use_gpu else "cpu", max_batch=max_batch)
        self.painter: Painter | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            # Not in the constructor: there an error would only be seen as an actor that does not start.
            self.painter = self.painter or self.load()
            lines = self.paint([PaintTask.from_json(str(text)) for text in batch["task"]], self.painter)
        except InpaintError as error:
            # As a value: Ray would bury the message in its own stack trace, and lose the type.
            return {"refused": _objects([str(error)])}
        return {name: _objects([line[name] for line in lines]) for name in lines[0]}

    def paint(self, tasks: list[PaintTask], painter: Painter) -> list[dict[str, Any]]:
        """One line per task: what `Painted` says and the encoded pictures, or why it cannot be painted."""
        started = time.monotonic()
        read = list(self.threads.map(self._read, tasks))
        usable = [(task, *files) for task, files in zip(tasks, read, strict=True) if not isinstance(files, BadRow)]
        requests = [request_of(photo, hole, task.prompt, task.seed, self.settings) for task, photo, hole in usable]
        pictures = painter.paint(requests)
        lines = list(self.threads.map(_line, usable, pictures))
        seconds = (time.monotonic() - started) / len(tasks)
        lines += [_failure(t, error) for t, error in zip(tasks, read, strict=True) if isinstance(error, BadRow)]
        return [{**line, "seconds": round(seconds, 3)} for line in lines]

    def _read(self, task: PaintTask) -> tuple[np.ndarray, np.ndarray] | BadRow:
        try:
            return read_row(task.row, self.limits, self.settings.seed)
        except BadRow as error:
            return error


def _line(task_photo_hole: tuple[PaintTask, np.ndarray, np.ndarray], picture: np.ndarray) -> dict[str, Any]:
    task, photo, hole = task_photo_hole
    png = encode_png(picture)
    return {
        "id": task.row.id,
        "prompt": task.prompt,
        "seed": task.seed,
        "output": task.output,
        "kept_pixels_changed": kept_pixels_changed(photo, picture, hole),
        "sha256": picture_hash(png),
        "key": task.key,
        "picture": png,
        "comparison": encode_png(comparison(photo, hole, picture)),
        "failure": "",
    }


def _failure(task: PaintTask, error: BadRow) -> dict[str, Any]:
    """As `_line`, for a file that vanished or changed since the manifest was made."""
    texts = dict.fromkeys(("prompt", "output", "sha256", "key"), "")
    failure = {"field": error.field, "reason": str(error.reason), "detail": error.detail}
    numbers = {"seed": 0, "kept_pixels_changed": 0}
    return {"id": task.row.id, **texts, **numbers, "picture": b"", "comparison": b"", "failure": json.dumps(failure)}


def _paint_all(
    tasks: list[PaintTask],
    settings: PaintSettings,
    load: Callable[..., Painter],
    cluster: PaintCluster,
    limits: Limits,
) -> Iterator[dict[str, Any]]:
    """Lines of `PaintActor`, as they are finished."""
    if not tasks:
        return
    # Pictures of like aspect share a working shape, and only those share a U-Net call.
    tasks = sorted(tasks, key=lambda task: task.row.height / task.row.width)
    blocks = -(-len(tasks) // cluster.max_batch)
    needs = _needs(cluster, blocks)
    dataset = ray.data.from_items([{"task": task.to_json()} for task in tasks], override_num_blocks=blocks)
    dataset = dataset.map_batches(
        PaintActor,
        fn_constructor_kwargs={
            "settings": settings,
            "load": load,
            "limits": limits,
            "cpus": needs.cpus_per_worker,
            "use_gpu": needs.gpus_per_worker > 0,
            "max_batch": cluster.max_batch,
        },
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=needs.workers),
        num_cpus=needs.cpus_per_worker,
        num_gpus=needs.gpus_per_worker,
    )
    dataset.context.enable_progress_bars = False
    yield from dataset.iter_rows()


def _needs(cluster: PaintCluster, blocks: int) -> Needs:
    """How many actors of what size; never more than there are blocks. Raises ClusterTooSmall."""
    nodes = cluster_nodes()
    gpus = cluster.gpus_per_actor if any(node.gpus for node in nodes) else 0.0
    if gpus:
        most = sum(int(node.gpus / gpus + 1e-9) for node in nodes)
    else:
        most = sum(node.cpus >= 1 for node in nodes)
    actors = min(cluster.actors or max(1, most), blocks)
    cpus = cluster.cpus_per_actor
    if cpus is None and gpus:
        cpus = 1.0
    elif cpus is None:
        smallest = min((node.cpus for node in nodes if node.cpus >= 1), default=1.0)
        cpus = max(1.0, smallest * max(1, most) // actors)
    needs = Needs(workers=actors, cpus_per_worker=cpus, gpus_per_worker=gpus, data_cpus=0)
    check_fits(needs, nodes)
    return needs


def _objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
