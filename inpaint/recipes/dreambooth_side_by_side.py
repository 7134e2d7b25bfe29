"""Several subjects, each a training of its own in one worker, side by side on the cluster: a map over subjects."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from inpaint.progress import ProgressBar
from inpaint.recipes.dreambooth import DreamboothLora
from inpaint.recipes.fleet import AdapterWorker, check_latents, done_lines, item_of, write_table
from inpaint.rowmap import ActorPool, map_rows
from inpaint.stopping import StopToken
from inpaint.train.checkpoint import Progress
from inpaint.train.run import encode_before, prepared
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
    check_latents(recipe)
    trainings, output = prepared(recipe, stop or StopToken()), recipe.output
    encode_before(trainings, stop or StopToken(), announce)
    with ProgressBar("subjects") as bar:
        report = map_rows(
            [item_of(training) for training in trainings],
            SubjectWorker,
            output,
            name=DONE,
            pool=replace(pool, max_batch=1),
            on_progress=bar.show,
            stop=stop,
        )
        for warned in report.warned:
            bar.warn(warned.line)
    lines = done_lines(output, DONE)
    rows = ({"subject": line["id"], **line} for line in lines)
    write_table(output, TABLE, COLUMNS, sorted(rows, key=lambda row: str(row["subject"])))
    return [f"{output}/{line['adapter']}" for line in lines]


class SubjectWorker(AdapterWorker):
    """Trains subjects one after another."""

    def about(self, training: Training, ended: Progress) -> dict[str, Any]:
        sources = np.bincount(training.rows.table["source"], minlength=2)
        return {
            "prompt": str(training.rows.table["prompt"][0]),
            "photos": int(sources[0]),
            "class_images": int(sources[1]),
            "seen": times_seen(training, ended.samples),
        }


def times_seen(training: Training, samples: int) -> dict[str, int]:
    """How often each image came in the first `samples` positions of the plan, which the loop compares with those that
    it gets."""
    _, rows = training.plan.lookup(np.arange(samples))
    ids = training.rows.table["id"].to_pylist()
    return dict(sorted(Counter(ids[row] for row in rows).items()))
