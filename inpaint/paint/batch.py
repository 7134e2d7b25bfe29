"""Painting a data set: a map over its rows (`inpaint.rowmap`), each actor with its own painter.

Guaranteed: one picture per usable row, its kept pixels bit for bit the input's; a row's picture does not depend on the
number of actors or on the other rows.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from inpaint.data import quarantine
from inpaint.data.quarantine import Quarantined
from inpaint.data.rows import Manifest
from inpaint.errors import BadRow
from inpaint.paint.paste import comparison, kept_pixels_changed
from inpaint.paint.photos import encode_png, read_row
from inpaint.paint.request import PaintRequest
from inpaint.paint.tasks import COMPARISONS, PaintModels, PaintSettings, PaintTask, plan_tasks, read_models
from inpaint.rowmap import QUARANTINE, ActorPool, ActorResources, Item, MapReport, Result, map_rows
from inpaint.stopping import StopToken

PAINTED = "painted.jsonl"
"""Done-list of the output: id, prompt, seed, output, kept_pixels_changed, seconds, files."""


def paint_manifest(
    manifest: Manifest,
    settings: PaintSettings,
    output: str,
    *,
    pool: ActorPool | None = None,
    here: ActorResources | None = None,
    quarantined: Sequence[Quarantined] = (),
    on_progress: Callable[[int, int], None] | None = None,
    stop: StopToken | None = None,
) -> MapReport:
    """Paints every row into `output` (a folder or URL): pictures, comparisons, `painted.jsonl`, `quarantine.jsonl`.

    What is there already, painted from the same row in the same way, is not painted again. Where a row has an `input`,
    that is the photo which is painted on; else its image is. Without a mask all but a random centre crop is painted.

    Args:
        pool, here, on_progress, stop: as in `inpaint.rowmap.map_rows`.
        quarantined: rows that could not be read; they are reported with those that cannot be painted.

    Raises:
        InpaintError: no usable row; settings, a base, an adapter or an output that cannot be used; stopped.
    """
    models = read_models(settings)
    tasks, unknown = plan_tasks(manifest, models)
    # Pictures of like aspect share a working shape, and only those share a U-Net call.
    tasks.sort(key=lambda task: task.row.height / task.row.width)
    pool = pool or ActorPool()
    report = map_rows(
        [Item(task.row.id, task.key, task) for task in tasks],
        partial(PaintWorker, models, pool.max_batch),
        output,
        name=PAINTED,
        pool=pool,
        here=here,
        quarantined=[*quarantined, *unknown],
        on_progress=on_progress,
        stop=stop,
    )
    quarantine.check(report.quarantined, len(manifest) + len(quarantined), 1.0, f"{output}/{QUARANTINE}")
    return report


class PaintWorker:
    """Paints batches of tasks; each batch is read and encoded by threads around one painting."""

    def __init__(self, models: PaintModels, max_batch: int, resources: ActorResources) -> None:
        # Ray sets OMP_NUM_THREADS from whole CPUs only, and torch may have read it before.
        torch.set_num_threads(resources.threads)
        self.threads = ThreadPoolExecutor(resources.threads)
        self.settings = models.settings
        self.painter = models.painter(resources.device, max_batch)

    def __call__(self, tasks: Sequence[PaintTask]) -> list[Result | BadRow]:
        started = time.monotonic()
        requests = list(self.threads.map(self._request, tasks))
        usable = [request for request in requests if isinstance(request, PaintRequest)]
        pictures = iter(self.painter.paint(usable))
        painted = [request if isinstance(request, BadRow) else (request, next(pictures)) for request in requests]
        seconds = round((time.monotonic() - started) / len(tasks), 3)
        return list(self.threads.map(partial(_result, seconds), tasks, painted))

    def _request(self, task: PaintTask) -> PaintRequest | BadRow:
        try:
            photo, hole = read_row(task.row, self.settings.seed)
        except BadRow as error:
            # The file vanished or changed since the manifest was made.
            return error
        return PaintRequest(
            image=photo,
            hole=hole,
            prompt=task.prompt,
            negative_prompt=self.settings.negative_prompt,
            seed=task.seed,
            sampling=self.settings.sampling,
        )


def _result(seconds: float, task: PaintTask, painted: tuple[PaintRequest, np.ndarray] | BadRow) -> Result | BadRow:
    if isinstance(painted, BadRow):
        return painted
    request, picture = painted
    strip = comparison(request.image, request.hole, picture)
    changed = kept_pixels_changed(request.image, picture, request.hole)
    return Result(
        files={f"{COMPARISONS}/{task.output}": encode_png(strip), task.output: encode_png(picture)},
        line={
            "prompt": task.prompt,
            "seed": task.seed,
            "output": task.output,
            "kept_pixels_changed": changed,
            "seconds": seconds,
        },
    )
