"""Several subjects, each a training of its own in one worker, side by side on the cluster: a map over subjects."""

import csv
import io
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from inpaint.data.storage import read_file, write_file
from inpaint.errors import InpaintError
from inpaint.progress import ProgressBar
from inpaint.recipes.dreambooth import DreamboothLora
from inpaint.rowmap import ActorPool, ActorResources, Item, Result, key_of, map_rows
from inpaint.stopping import StopToken
from inpaint.train.alone import train_alone
from inpaint.train.encoding import Latents
from inpaint.train.run import encode_before, prepared, trained_by
from inpaint.train.settings import plain
from inpaint.train.trainer import Training

DONE, TABLE = "subjects.jsonl", "subjects.csv"
COLUMNS = ("subject", "prompt", "photos", "class_images", "samples", "loss", "seconds", "adapter")


def train_subjects(
    recipe: DreamboothLora,
    *,
    pool: ActorPool,
    stop: StopToken | None = None,
    announce: Callable[[str], None] = print,
) -> list[str]:
    """Read the photos of all subjects, train each on an actor, and write their adapters and one table, `subjects.csv`,
    into the recipe's output; returns the adapters' folders.

    An adapter that is there and whole is not trained again, and a training that was interrupted goes on from its
    checkpoint. How often each image came stands in `subjects.jsonl`.

    Args:
        announce: told what is to be encoded, where latents are cached.

    Raises:
        InpaintError: unusable data or settings, or `stop` ended it.
    """
    if recipe.latents is Latents.STREAMED:
        raise InpaintError(
            "latents streamed: is for one subject; several are trained each in a process of its own: give cached"
        )
    trainings, output = prepared(recipe, stop or StopToken()), recipe.output
    encode_before(trainings, stop or StopToken(), announce)
    with ProgressBar("subjects") as bar:
        report = map_rows(
            [Item(training.name, _key(training), _to_go_on(training)) for training in trainings],
            SubjectWorker,
            output,
            name=DONE,
            pool=replace(pool, max_batch=1),
            on_progress=bar.show,
            stop=stop,
        )
        for warned in report.warned:
            bar.warn(warned.line)
    lines = [json.loads(line) for line in (read_file(output, DONE) or b"").decode().splitlines()]
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(({"subject": line["id"], **line} for line in lines), key=lambda line: str(line["subject"])))
    write_file(output, TABLE, table.getvalue().encode())
    return [f"{output}/{line['adapter']}" for line in lines]


class SubjectWorker:
    """Trains subjects one after another."""

    def __init__(self, resources: ActorResources) -> None:
        torch.set_num_threads(resources.threads)
        self.resources = resources

    def __call__(self, trainings: Sequence[Training]) -> list[Result]:
        return [self._train(training) for training in trainings]

    def _train(self, training: Training) -> Result:
        started = time.monotonic()
        ended = train_alone(training, torch.device(self.resources.device), self.resources.threads)
        trained = trained_by(training, ended)
        where = f"adapters/{training.name}"
        with tempfile.TemporaryDirectory() as folder:
            training.recipe.export(trained, Path(folder))
            files = {f"{where}/{path.name}": path.read_bytes() for path in Path(folder).iterdir()}
        sources = np.bincount(training.rows.table["source"], minlength=2)
        line = {
            "prompt": str(training.rows.table["prompt"][0]),
            "photos": int(sources[0]),
            "class_images": int(sources[1]),
            "samples": ended.samples,
            "loss": ended.metrics.get("loss"),
            "seconds": round(time.monotonic() - started, 1),
            "adapter": where,
            "unread": ended.unread,
            "seen": times_seen(training, ended.samples),
        }
        return Result(files, line)


def times_seen(training: Training, samples: int) -> dict[str, int]:
    """How often each image came in the first `samples` positions of the plan, which the loop compares with those that
    it gets."""
    _, rows = training.plan.lookup(np.arange(samples))
    ids = training.rows.table["id"].to_pylist()
    return dict(sorted(Counter(ids[row] for row in rows).items()))


def _to_go_on(training: Training) -> Training:
    """What an earlier run began was refused, or wanted: an actor that is started again goes on. The card has no
    pictures, for other actors would have to paint them."""
    recipe = training.recipe
    assert isinstance(recipe, DreamboothLora)
    return replace(training, recipe=replace(recipe, resume=True, card_samples=0))


def _key(training: Training) -> str:
    return key_of(plain(training.recipe, fixed_only=True), training.rows.hash, training.total)
