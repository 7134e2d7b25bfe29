"""Running a recipe to its end: read, refuse, fit, validate, export. The one way from a workload to its result."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

from inpaint.data import quarantine
from inpaint.data.pipeline import read_manifest
from inpaint.data.plan import Plan
from inpaint.data.rows import Manifest
from inpaint.data.storage import absolute, output_folder, read_file, write_file
from inpaint.errors import InpaintError
from inpaint.progress import ProgressBar
from inpaint.stopping import StopToken
from inpaint.train.checkpoint import CheckpointStore, Progress
from inpaint.train.recipe import CHECKPOINTS, Recipe, Trained
from inpaint.train.settings import Keep, plain
from inpaint.train.trainer import fit, runs_side_by_side

ROWS, RECIPE = "rows.parquet", "recipe.json"


def run(recipe: Recipe, *, stop: StopToken | None = None) -> list[str]:
    """Read, train and export; returns the folders or URLs of what was exported.

    Raises:
        InpaintError: unusable data or settings, or `stop` ended it (the message says how to go on).
    """
    stop = stop or StopToken()
    # What can be refused without the data is refused before it is read.
    most_together = runs_side_by_side(recipe.train)
    recipe.check()
    rows, held_out = _rows(recipe, stop)
    parts = recipe.parts(rows)
    held = {} if held_out is None else recipe.parts(held_out)
    lacking = sorted(parts.keys() - held.keys()) if held_out is not None else []
    if lacking:
        raise InpaintError(
            f"{lacking[0]}: no row of it is held out for validation: raise validation.share, or set it 0"
        )
    together = min(len(parts), most_together)
    failed = threading.Event()

    def train(name: str) -> tuple[Recipe, Trained]:
        stop.check()
        if failed.is_set():
            raise InpaintError(f"{name} was not begun, for another training failed")
        try:
            bound = recipe.bind(parts[name])
            folder = recipe.run_folder(name)
            ended = fit(bound, parts[name], held.get(name), folder, name=name, side_by_side=together, stop=stop)
            return bound, _trained(bound, parts[name], folder, ended)
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


def _rows(recipe: Recipe, stop: StopToken) -> tuple[Manifest, Manifest | None]:
    """What is trained on, and what is held out."""
    rows = _read(recipe, recipe.data, "data", stop)
    if recipe.validation.data is not None:
        return rows, _read(recipe, recipe.validation.data, "validation_data", stop)
    if recipe.validation.share:
        return rows.split(recipe.validation.share, recipe.train.seed)
    return rows, None


def _read(recipe: Recipe, data: str, what: str, stop: StopToken) -> Manifest:
    """The usable rows of `data`, or those that the run began with, where it is resumed; the others are listed in the
    `quarantine.jsonl` beside them."""
    where = f"{absolute(recipe.output)}/{what}"
    record = {**plain(recipe), "data": absolute(data)}
    begun = read_file(where, RECIPE) if recipe.resume and not recipe.recheck else None
    if begun is not None and json.loads(begun)["data"] == record["data"]:
        return Manifest.load(f"{where}/{ROWS}")
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
    manifest.save(f"{where}/{ROWS}")
    write_file(where, RECIPE, json.dumps(record, indent=1).encode() + b"\n")
    return manifest


def _trained(recipe: Recipe, rows: Manifest, folder: str, ended: Progress) -> Trained:
    total = recipe.train.total_samples(Plan.of(rows, recipe.train.seed).samples_per_epoch)
    if ended.samples < total:
        raise InpaintError(f"stopped at sample {ended.samples} of {total}, checkpointed: go on with --resume")
    store = CheckpointStore(f"{folder}/{CHECKPOINTS}")
    best = store.best() if recipe.validation.export is Keep.BEST and recipe.validation.is_held_out else None
    loaded = store.latest() if best is None else store.load(best[0])
    assert loaded is not None, "a finished run has a checkpoint"
    tensors, progress = loaded
    return Trained(tensors.get("ema", tensors["trained"]), progress, ended.samples, rows)
