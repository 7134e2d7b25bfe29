"""Several subjects, each a training of its own in one worker, side by side on the cluster: a map over subjects."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from inpaint.errors import InpaintError
from inpaint.recipes.dreambooth import DreamboothLora
from inpaint.recipes.side_by_side import AdapterWorker, check_latents, train_side_by_side, write_table
from inpaint.rowmap import ActorPool
from inpaint.stopping import StopToken
from inpaint.train.checkpoint import Progress
from inpaint.train.run import prepared
from inpaint.train.together import check_together
from inpaint.train.trainer import Training

DONE, TABLE = "subjects.jsonl", "subjects.csv"
COLUMNS = ("subject", "prompt", "photos", "class_images", "samples", "loss", "seconds", "adapter", "error")


def train_subjects(
    recipe: DreamboothLora,
    *,
    pool: ActorPool,
    together: int = 1,
    stop: StopToken | None = None,
    announce: Callable[[str], None] = print,
) -> list[str]:
    """Read the photos of all subjects, train each on an actor, and write their adapters and one table, `subjects.csv`,
    into the recipe's output; returns the adapters' folders.

    An adapter that is there and whole is not trained again, and a training that was interrupted goes on from its
    checkpoint. How often each image came stands in `subjects.jsonl`. One that fails stops no other.

    Args:
        together: subjects trained at once on one actor.
        announce: told what is to be trained, and encoded where latents are cached.

    Raises:
        InpaintError: unusable data or settings, a subject failed, or `stop` ended it.
    """
    if together > 1:
        check_together(recipe.train)
    check_latents(recipe)
    stop, output = stop or StopToken(), recipe.output
    lines, failed = train_side_by_side(
        prepared(recipe, stop), SubjectWorker, output, DONE, pool=pool, together=together, stop=stop, announce=announce
    )
    rows = [{"subject": line["id"], **line} for line in lines]
    rows += [{"subject": name, "error": why} for name, why in failed.items()]
    write_table(output, TABLE, COLUMNS, sorted(rows, key=lambda row: str(row["subject"])))
    if failed:
        raise InpaintError("; ".join(f"{name}: {why}" for name, why in failed.items()))
    return [f"{output}/{line['adapter']}" for line in lines]


class SubjectWorker(AdapterWorker):
    """Trains subjects."""

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
