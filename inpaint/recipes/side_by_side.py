"""Trainings side by side on the cluster: a map over them, on actors that train one or several at once."""

import csv
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from inpaint.data.quarantine import Reason
from inpaint.data.storage import read_file, write_file
from inpaint.device import use_cores
from inpaint.errors import BadRow, InpaintError
from inpaint.progress import ProgressBar
from inpaint.recipes.lora import LoraRecipe
from inpaint.rowmap import ActorPool, ActorResources, Item, Result, key_of, map_rows
from inpaint.stopping import StopToken
from inpaint.train.alone import train_alone
from inpaint.train.checkpoint import VALIDATION_LOSS, Progress
from inpaint.train.encoding import Latents
from inpaint.train.packing import measured, pack
from inpaint.train.run import decode_before, encode_before, trained_by
from inpaint.train.settings import plain
from inpaint.train.together import FAILURES, Ended, train_together
from inpaint.train.trainer import Training, starting_point


def train_side_by_side(
    trainings: Sequence[Training],
    worker: Callable[[ActorResources], "AdapterWorker"],
    output: str,
    done: str,
    *,
    pool: ActorPool,
    together: int | None,
    stop: StopToken,
    announce: Callable[[str], None],
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Train each on the cluster, those that are done and whole left out; returns the lines of the done-list, and why
    there is none of the others, by name.

    Args:
        done: name of the done-list in the output.
        together: most trainings at once in one process; fewer where memory does not hold them, or there are processes
            without; None: as memory says.
        announce: told what is planned, and from what.

    Raises:
        InpaintError: there is no memory for one, the cluster is too small, or `stop` ended it.
    """
    for training in trainings:
        if told := training.left_out:
            announce(f"{training.name}: {told}")
    encode_before(trainings, stop, announce)
    trainings = decode_before(trainings, stop, announce)
    left = [training for training in trainings if starting_point(training).samples < training.total]
    if left:
        pool, told = pack(len(left), measured(left[0], pool), pool, together)
        announce(told)
    with ProgressBar("adapters") as bar:
        items = [_item(training) for training in trainings]
        report = map_rows(items, worker, output, name=done, pool=pool, on_progress=bar.show, stop=stop)
        for warned in report.warned:
            bar.warn(warned.line)
    lines = [json.loads(line) for line in (read_file(output, done) or b"").decode().splitlines()]
    return lines, {bad.name: bad.detail for bad in report.quarantined}


class AdapterWorker:
    """Trains adapters, as many at once as it is given."""

    def __init__(self, resources: ActorResources) -> None:
        use_cores(resources.threads)
        self.device, self.threads = torch.device(resources.device), resources.threads

    def __call__(self, trainings: Sequence[Training]) -> list[Result | BadRow]:
        started = time.monotonic()
        ended = self._trained(trainings)
        seconds = (time.monotonic() - started) / len(trainings)
        return [self._outcome(training, end, seconds) for training, end in zip(trainings, ended, strict=True)]

    def _trained(self, trainings: Sequence[Training]) -> Sequence[Ended]:
        if len(trainings) > 1:
            return train_together(trainings, self.device, self.threads)
        try:
            return [train_alone(trainings[0], self.device, self.threads)]
        except FAILURES as error:
            return [error]

    def about(self, training: Training, ended: Progress) -> dict[str, Any]:
        """What the table says of an adapter beside how it was trained."""
        return {"rows": len(training.rows), VALIDATION_LOSS: ended.metrics.get(VALIDATION_LOSS)}

    def _outcome(self, training: Training, ended: Ended, seconds: float) -> Result | BadRow:
        try:
            if isinstance(ended, Progress):
                return self._result(training, ended, seconds)
        except FAILURES as error:
            ended = error
        return BadRow("adapter", Reason.NOT_TRAINED, str(ended))

    def _result(self, training: Training, ended: Progress, seconds: float) -> Result:
        where = f"adapters/{training.name}"
        with tempfile.TemporaryDirectory() as folder:
            training.recipe.export(trained_by(training, ended), Path(folder))
            paths = [path for path in Path(folder).rglob("*") if path.is_file()]
            files = {f"{where}/{path.relative_to(folder)}": path.read_bytes() for path in paths}
        line = {"samples": ended.samples, "loss": ended.metrics.get("loss"), "seconds": round(seconds, 1)}
        return Result(files, {**line, **self.about(training, ended), "adapter": where, "unread": ended.unread})


def _item(training: Training) -> Item:
    """A training for a worker. What an earlier run began was refused, or wanted: one that is started again goes on. The
    card has no pictures, for other actors would have to paint them."""
    recipe = training.recipe
    assert isinstance(recipe, LoraRecipe)
    to_go_on = replace(training, recipe=replace(recipe, resume=True, card_samples=0))
    return Item(training.name, key_of(plain(recipe, fixed_only=True), training.rows.hash, training.total), to_go_on)


def check_latents(recipe: LoraRecipe) -> None:
    """Raises InpaintError where a training would need a stream of its own."""
    if recipe.latents is Latents.STREAMED:
        raise InpaintError("latents streamed: is for one training on Ray Train; of several side by side, give cached")


def write_table(output: str, name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """A CSV of these columns of rows that may have others."""
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(output, name, table.getvalue().encode())
