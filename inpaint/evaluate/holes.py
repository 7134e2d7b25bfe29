"""Measuring painted holes on actors: a resumable map (`inpaint.rowmap`) over a data set's rows and their pictures."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from inpaint.data.decode import PAINT
from inpaint.data.quarantine import Reason
from inpaint.data.rows import Manifest, Row
from inpaint.data.storage import absolute, open_root, read_file
from inpaint.errors import BadRow, InpaintError
from inpaint.evaluate.metrics import boundary_jump, hole_figures, object_expansion, spread
from inpaint.paint.batch import output_names
from inpaint.paint.photos import read_image, read_row
from inpaint.rowmap import ActorPool, ActorResources, Item, MapReport, Result, key_of, map_rows
from inpaint.stopping import StopToken

MEASURED = "measured.jsonl"
"""Done-list of the output: id, picture, and the figures of each row."""
FIGURES = ("psnr", "ssim", "l1", "boundary_jump", "object_expansion", "spread")
"""Of a row; what there was nothing to measure with is missing."""


@dataclass(frozen=True, kw_only=True)
class PaintedRuns:
    """Where pictures of a data set lie; plain values, for they travel."""

    folders: tuple[str, ...]
    """Outputs of painting runs over the same rows, with other seeds; the first one's pictures are measured."""
    found: str | None = None
    """A folder of masks named as the pictures, white where a detector found the product in them."""
    seed: int = 0
    """Of the first run: rows without a mask have the hole that it drew."""


@dataclass(frozen=True, kw_only=True)
class _Task:
    row: Row
    name: str


def measure_holes(
    manifest: Manifest,
    painted: PaintedRuns,
    output: str,
    *,
    pool: ActorPool | None = None,
    here: ActorResources | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    stop: StopToken | None = None,
) -> tuple[list[dict[str, object]], MapReport]:
    """The done-list's lines, with `FIGURES`; rows without a picture are in the output's `quarantine.jsonl`. A row is
    measured again where its picture's size or time of change is another. Arguments and errors as `map_rows`."""
    names = output_names(manifest.table["id"].to_pylist())
    stats = [open_root(folder).files() for folder in (*painted.folders, *filter(None, [painted.found]))]
    shared = [[absolute(folder) for folder in painted.folders], painted.found, painted.seed]
    items = []
    for row in manifest.rows():
        name = names[row.id]
        key = key_of(shared, row.digest, [str(found.get(name)) for found in stats])
        items.append(Item(row.id, key, _Task(row=row, name=name)))
    report = map_rows(
        items,
        partial(_worker, painted),
        output,
        name=MEASURED,
        pool=pool or ActorPool(),
        here=here,
        on_progress=on_progress,
        stop=stop,
    )
    return [json.loads(line) for line in (read_file(output, MEASURED) or b"").splitlines()], report


def means(lines: Sequence[Mapping[str, object]]) -> dict[str, float]:
    """Of each figure over the rows that have it. Raises InpaintError for no rows."""
    if not lines:
        raise InpaintError("no picture could be measured: quarantine.jsonl says why")
    values = {name: [float(str(line[name])) for line in lines if line.get(name) is not None] for name in FIGURES}
    return {name: float(np.mean(found)) for name, found in values.items() if found}


def figures_of(row: Row, name: str, painted: PaintedRuns) -> dict[str, float]:
    """A row's figures. Raises BadRow where a file cannot be used."""
    photo, hole = read_row(row, painted.seed)
    truth = photo.image if row.input is None else read_image(row.root, row.image)
    results = [read_image(folder, name) for folder in painted.folders]
    if any(picture.shape != photo.image.shape for picture in (truth, *results)):
        sizes = " and ".join(f"{one.shape[1]} x {one.shape[0]}" for one in (photo.image, truth, *results))
        raise BadRow("painted", Reason.OTHER_SIZE, f"{name}: {sizes}; give pictures of the photo's size")
    result = results[0]
    figures = hole_figures(result, truth, hole)
    measured: dict[str, Callable[[], float]] = {"boundary_jump": lambda: boundary_jump(result, hole)}
    if len(results) > 1:
        measured["spread"] = lambda: spread(results, hole)
    if painted.found is not None:
        found = read_image(painted.found, name)[..., 0] >= PAINT
        measured["object_expansion"] = lambda: object_expansion(found, ~hole)
    for figure, measure in measured.items():
        try:
            figures[figure] = measure()
        except InpaintError:
            continue  # such as a hole without an edge: this row has none of it
    return figures


def _worker(painted: PaintedRuns, resources: ActorResources) -> Callable[[list[_Task]], list[Result | BadRow]]:
    def measured(task: _Task) -> Result | BadRow:
        try:
            return Result(line={"picture": task.name, **figures_of(task.row, task.name, painted)})
        except BadRow as error:
            return error

    return lambda tasks: [measured(task) for task in tasks]
