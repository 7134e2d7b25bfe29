"""Running a recipe to its end: read, refuse, fit, validate, export. The one way from a workload to its result."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from inpaint.data import quarantine
from inpaint.data.pipeline import read_manifest
from inpaint.data.plan import Plan
from inpaint.data.rows import Manifest
from inpaint.data.storage import absolute, output_folder, read_file, write_file
from inpaint.errors import InpaintError
from inpaint.progress import ProgressBar
from inpaint.stopping import StopToken
from inpaint.train.checkpoint import CHECKPOINTS, CheckpointStore, Progress
from inpaint.train.recipe import Recipe, Trained
from inpaint.train.settings import Keep, plain
from inpaint.train.trainer import fit, runs_side_by_side, starting_point

ROWS, RECIPE = "rows.parquet", "recipe.json"


def run(recipe: Recipe, *, stop: StopToken | None = None) -> list[str]:
    """Read, train and export; returns the folders or URLs of what was exported.

    Raises:
        InpaintError: unusable data or settings, or `stop` ended it (the message says how to go on).
    """
    stop = stop or StopToken()
    # What can be refused without the data is refused before it is read, ...
    most_together = runs_side_by_side(recipe.train)
    recipe.check()
    rows = _read(recipe, recipe.data, "data", stop)
    extra = recipe.validation.data
    validating = None if extra is None else _read(recipe, extra, "validation_data", stop)
    parts = _parts(recipe, rows, validating)
    # ... and what can be refused without workers before the rows that an earlier run began with are written over.
    for part in parts.values():
        starting_point(part.recipe, part.rows, part.held_out, part.folder)
    for read in filter(None, (rows, validating)):
        read.save()
    together = min(len(parts), most_together)
    failed = threading.Event()

    def train(name: str) -> tuple[Recipe, Trained]:
        stop.check()
        if failed.is_set():
            raise InpaintError(f"{name} was not begun, for another training failed")
        try:
            part = parts[name]
            ended = fit(part.recipe, part.rows, part.held_out, part.folder, name=name, side_by_side=together, stop=stop)
            return part.recipe, _trained(part, ended)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(together) as pool:
        results = dict(zip(parts, pool.map(train, parts), strict=True))
    for name, (bound, trained) in results.items():
        stop.check()
        with output_folder(recipe.export_folder(name)) as folder:
            bound.export(trained, folder)
    return [recipe.export_folder(name) for name in results]


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows that were read, and what is to be kept of that; nothing where they were kept already."""

    manifest: Manifest
    where: str
    record: dict[str, Any] | None

    def save(self) -> None:
        if self.record is not None:
            self.manifest.save(f"{self.where}/{ROWS}")
            write_file(self.where, RECIPE, json.dumps(self.record, indent=1).encode() + b"\n")


def _read(recipe: Recipe, data: str, what: str, stop: StopToken) -> _Rows:
    """The usable rows of `data`, or those that the run began with, where it is resumed; the others are listed in the
    `quarantine.jsonl` beside them."""
    where = f"{absolute(recipe.output)}/{what}"
    record = {**plain(recipe), "data": absolute(data)}
    begun = read_file(where, RECIPE) if recipe.resume and not recipe.recheck else None
    if begun is not None and json.loads(begun)["data"] == record["data"]:
        return _Rows(Manifest.load(f"{where}/{ROWS}"), where, None)
    with ProgressBar(f"checking {what}") as bar:
        manifest, bad = read_manifest(
            recipe.source(data),
            max_bad_fraction=recipe.max_bad_fraction,
            quarantine=f"{where}/quarantine.jsonl",
            memory=f"{where}/inspected.parquet",
            crop_aspect=recipe.aspect(),
            progress=bar.show,
            stop=stop,
        )
        if bad:
            bar.warn(quarantine.table(bad, len(bad) + len(manifest)))
    return _Rows(manifest, where, record)


@dataclass(frozen=True, eq=False)
class _Part:
    """One training of a run."""

    recipe: Recipe
    """Bound to its rows."""
    rows: Manifest
    held_out: Manifest | None
    folder: str


def _parts(recipe: Recipe, read: _Rows, validating: _Rows | None) -> dict[str, _Part]:
    trained = recipe.parts(read.manifest)
    held: dict[str, Manifest] = {}
    if validating is not None:
        held = recipe.parts(validating.manifest)
        if len(trained) == len(held) == 1:
            # A part's name depends on its rows, but what is one training validates on all of them.
            held = dict(zip(trained, held.values(), strict=True))
        for name in sorted(trained.keys() - held.keys()):
            raise InpaintError(f"{name}: no row of {recipe.validation.data} is of it, so that it cannot be validated")
    elif recipe.validation.share:
        for name, rows in trained.items():
            trained[name], held[name] = rows.split(recipe.validation.share, recipe.train.seed)
            if not len(held[name]):
                raise InpaintError(f"{name}: none of its rows can be held out, for all show one image")
    return {
        name: _Part(recipe.bind(rows), rows, held.get(name), recipe.run_folder(name)) for name, rows in trained.items()
    }


def _trained(part: _Part, ended: Progress) -> Trained:
    recipe = part.recipe
    total = recipe.train.total_samples(Plan.of(part.rows, recipe.train.seed).samples_per_epoch)
    if ended.samples < total:
        raise InpaintError(f"stopped at sample {ended.samples} of {total}, checkpointed: go on with --resume")
    store = CheckpointStore(f"{part.folder}/{CHECKPOINTS}")
    best = store.best() if recipe.validation.export is Keep.BEST and recipe.validation.is_held_out else None
    loaded = store.latest(set_aside=True) if best is None else store.load(best[0])
    assert loaded is not None, "a finished run has a checkpoint"
    tensors, progress = loaded
    if best is None and progress.samples < ended.samples:
        raise InpaintError(
            f"{part.folder}: the checkpoint of sample {ended.samples} is damaged and was set aside: train again "
            f"what came after sample {progress.samples} with --resume"
        )
    return Trained(tensors.get("ema", tensors["trained"]), progress, ended.samples, part.rows)
