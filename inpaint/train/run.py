"""Running a recipe to its end: read, refuse, fit, validate, export. The one way from a workload to its result."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from inpaint.data import quarantine
from inpaint.data.latents import Variants
from inpaint.data.pipeline import read_manifest, share_rows, store_room
from inpaint.data.rows import Manifest
from inpaint.data.storage import absolute, output_folder, read_file, write_file
from inpaint.errors import InpaintError
from inpaint.progress import ProgressBar
from inpaint.stopping import StopToken
from inpaint.train import optimizers
from inpaint.train.checkpoint import Progress
from inpaint.train.encode import Encoded, Subset, encode_latents
from inpaint.train.encoding import Latents
from inpaint.train.recipe import Recipe, Trained
from inpaint.train.settings import Keep, plain
from inpaint.train.trainer import Training, fit, runs_side_by_side, starting_point

ROWS, RECIPE = "rows.parquet", "recipe.json"


def run(recipe: Recipe, *, stop: StopToken | None = None, announce: Callable[[str], None] = print) -> list[str]:
    """Read, train and export; returns the folders or URLs of what was exported.

    Args:
        announce: told how long each training is, before it begins.

    Raises:
        InpaintError: unusable data or settings, or `stop` ended it (the message says how to go on).
    """
    stop = stop or StopToken()
    # What can be refused without the data is refused before it is read.
    runs_side_by_side(recipe.train)
    trainings = prepared(recipe, stop)
    for training in trainings:
        announce(f"{training.name}: {training.length}")
    encode_before(trainings, stop, announce)
    together = min(len(trainings), runs_side_by_side(recipe.train, trainings[0].recipe.how_encoded()))
    failed = threading.Event()

    def train(training: Training) -> Trained:
        stop.check()
        if failed.is_set():
            raise InpaintError(f"{training.name} was not begun, for another training failed")
        try:
            return trained_by(training, fit(training, side_by_side=together, stop=stop))
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(together) as pool:
        results = list(pool.map(train, trainings))
    exported = [recipe.export_folder(training.name) for training in trainings]
    for where, training, trained in zip(exported, trainings, results, strict=True):
        stop.check()
        with output_folder(where) as folder:
            training.recipe.export(trained, folder)
    return exported


def encode_before(trainings: Sequence[Training], stop: StopToken, announce: Callable[[str], None]) -> Encoded | None:
    """Encode what trainings will read, where their recipe has its latents cached. Raises InpaintError, as `run`."""
    encoding = trainings[0].recipe.how_encoded()
    if encoding is None or encoding.latents is not Latents.CACHED:
        return None
    subsets = [
        Subset(each.rows, Variants.of(each.rows, each.recipe.read_settings(), encoding.spec, each.plan, span))
        for each in trainings
        if (span := range(starting_point(each).samples, each.total))
    ]
    return encode_latents(subsets, encoding, announce=announce, stop=stop) if subsets else None


def decode_before(trainings: Sequence[Training], stop: StopToken, announce: Callable[[str], None]) -> list[Training]:
    """The same trainings, whose rows were decoded for all their readings where they are read as pixels, as far as Ray's
    object store has room. Raises InpaintError, as `run`."""
    room, found, alone = store_room(), list[Training](), 0
    for each in trainings:
        encoding, span = each.recipe.how_encoded(), range(starting_point(each).samples, each.total)
        if span and (encoding is None or encoding.keeps_image):
            read = each.recipe.read_settings()
            decoded = share_rows(each.rows, read, each.plan, span, room=room, stop=stop)
            room -= 0 if decoded is None else decoded.bytes
            alone += decoded is None
            each = replace(each, decoded=decoded)
        found.append(each)
    if alone:
        announce(f"the object store has no room for the rows of {alone} training(s), which decode them at each reading")
    return found


def prepared(recipe: Recipe, stop: StopToken, unfit: dict[str, str] | None = None) -> list[Training]:
    """The recipe's trainings, their rows read and written to its output, nothing left to be refused but by workers.

    Args:
        unfit: where given, filled with the parts whose rows cannot be trained on and why, which are then left out.

    Raises:
        InpaintError: as `run`.
    """
    optimizers.check(recipe.train.optimizer, recipe.learning_rates())
    recipe.check()
    lies_at = {"data": recipe.data}
    if recipe.validation.data is not None:
        lies_at["validation_data"] = recipe.validation.data
    goes_on = recipe.resume and not recipe.recheck
    began = {what: rows for what, data in lies_at.items() if goes_on and (rows := _began_with(recipe, what, data))}
    read = {what: _read(recipe, what, data, stop) for what, data in lies_at.items() if what not in began}
    trainings = _trainings(recipe, {**began, **read}, unfit)
    # What can be refused without workers is refused before the rows that an earlier run began with are written over.
    for training in trainings:
        starting_point(training)
    for what, rows in read.items():
        rows.save(f"{recipe.output}/{what}/{ROWS}")
        record = {**plain(recipe), "data": absolute(lies_at[what])}
        write_file(recipe.output, f"{what}/{RECIPE}", json.dumps(record, indent=1).encode() + b"\n")
    return trainings


def _began_with(recipe: Recipe, what: str, data: str) -> Manifest | None:
    """The rows that the run in the recipe's output began with, if they lie where its own do."""
    began = read_file(recipe.output, f"{what}/{RECIPE}")
    if began is None or json.loads(began)["data"] != absolute(data):
        return None
    return Manifest.load(f"{recipe.output}/{what}/{ROWS}")


def _read(recipe: Recipe, what: str, data: str, stop: StopToken) -> Manifest:
    """The usable rows of `data`; the others are listed in the `quarantine.jsonl` beside them."""
    with ProgressBar(f"checking {what}") as bar:
        manifest, bad = read_manifest(
            recipe.source(data),
            max_bad_fraction=recipe.max_bad_fraction,
            quarantine=f"{recipe.output}/{what}/quarantine.jsonl",
            memory=f"{recipe.output}/{what}/inspected.parquet",
            crop_aspects=recipe.aspects(),
            look=recipe.look(),
            progress=bar.show,
            stop=stop,
        )
        if bad:
            bar.warn(quarantine.table(bad, len(bad) + len(manifest)))
    return manifest


def _trainings(recipe: Recipe, read: Mapping[str, Manifest], unfit: dict[str, str] | None) -> list[Training]:
    parts, held = recipe.parts(read["data"]), None
    if "validation_data" in read:
        held = recipe.parts(read["validation_data"])
        if len(parts) == len(held) == 1:
            # A part's name depends on its rows, but what is one training validates on all of them.
            held = dict(zip(parts, held.values(), strict=True))
    trainings = []
    for name, rows in parts.items():
        try:
            trainings.append(_training(recipe, name, rows, held))
        except InpaintError as error:
            if unfit is None:
                raise
            unfit[name] = str(error)
    return trainings


def _training(recipe: Recipe, name: str, rows: Manifest, held: Mapping[str, Manifest] | None) -> Training:
    """Args: held: what each part validates on, where that is rows of its own."""
    held_out = None
    if held is not None:
        if name not in held:
            raise InpaintError(f"{name}: no row of {recipe.validation.data} is of it, so that it cannot be validated")
        held_out = held[name]
    elif recipe.validation.share:
        all_of_them = rows
        rows, held_out = rows.split(recipe.validation.share, recipe.train.seed)
        if not len(held_out):
            one = len(all_of_them.table["digest"].unique()) == 1
            why = "all show one image" if one else "each image is the only one of its category or label"
            raise InpaintError(f"{name}: none of its rows can be held out, for {why}")
    output = recipe.run_folder(name)
    return Training.of(recipe, rows, held_out, name=name, output=output)


def trained_by(training: Training, ended: Progress) -> Trained:
    """What is to be exported of a training. Raises InpaintError where it did not end, or its checkpoint is damaged."""
    validation, store, total = training.recipe.validation, training.store, training.total
    if ended.samples < total:
        raise InpaintError(f"stopped at sample {ended.samples} of {total}, checkpointed: go on with --resume")
    best = store.best() if validation.export is Keep.BEST and validation.is_held_out else None
    loaded = store.latest(set_aside=True) if best is None else store.load(best[0])
    assert loaded is not None, "a finished run has a checkpoint"
    tensors, progress = loaded
    if best is None and progress.samples < ended.samples:
        raise InpaintError(
            f"{training.output}: the checkpoint of sample {ended.samples} is damaged and was set aside: train again "
            f"what came after sample {progress.samples} with --resume"
        )
    parameters = tensors.get("ema", tensors["trained"])
    return Trained(training.name, parameters, progress, ended.samples, training.rows)
