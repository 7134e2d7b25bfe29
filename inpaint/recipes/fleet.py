"""A fleet of adapters: one per category of a CSV, several at once in one process on one frozen base, and processes side
by side on the cluster."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import tyro

from inpaint.errors import InpaintError
from inpaint.recipes.category_lora import Adapters, CategoryLora
from inpaint.recipes.side_by_side import AdapterWorker, check_latents, train_side_by_side, write_table
from inpaint.rowmap import ActorPool
from inpaint.stopping import StopToken
from inpaint.train.checkpoint import VALIDATION_LOSS
from inpaint.train.run import prepared
from inpaint.train.settings import may_change
from inpaint.train.together import check_together

DONE, TABLE = "fleet.jsonl", "fleet.csv"
COLUMNS = ("category", "rows", "samples", "loss", VALIDATION_LOSS, "seconds", "adapter", "error")


@dataclass(frozen=True, kw_only=True)
class Fleet(CategoryLora):
    """Settings of `python -m ray_jobs.fleet`: those of a category LoRA, for each category of the CSV by itself."""

    adapters: tyro.conf.Suppress[Adapters] = Adapters.PER_CATEGORY
    together: int | None = may_change(None)
    """Most adapters trained at once in one process, whose forward has so many times `train.max_micro_batch` rows; fewer
    where memory does not hold them; unset: as many as it holds, up to 16."""
    pool: Annotated[ActorPool, tyro.conf.arg(name="")] = may_change(ActorPool())
    """Processes side by side; with `cpus_per_actor` alone, on CPUs as many as CPUs and memory hold."""

    def check(self) -> None:
        super().check()
        check_together(self.train)
        check_latents(self)
        if self.together is not None and self.together < 1:
            raise InpaintError(f"together is {self.together}: give at least 1, or leave it out")


@dataclass(frozen=True)
class FleetReport:
    """What became of a fleet."""

    table: str
    """Path or URL of `fleet.csv`: a line per category."""
    adapters: list[str]
    """Their folders or URLs."""
    failed: Mapping[str, str]
    """Category -> why there is no adapter of it."""

    @property
    def lines(self) -> list[str]:
        """What is said of it."""
        failed = [f"failed: {category}: {why}" for category, why in self.failed.items()]
        return [*(f"adapter: {folder}" for folder in self.adapters), *failed, f"table: {self.table}"]


def train_fleet(
    config: Fleet, *, stop: StopToken | None = None, announce: Callable[[str], None] = print
) -> FleetReport:
    """Read the CSV, train an adapter for each of its categories, and write them and one table into the output.

    A category that cannot be trained stops no other. An adapter that is there and whole is not trained again, and with
    `resume` a training that was interrupted goes on from its checkpoint.

    Raises:
        InpaintError: unusable data or settings, no category could be trained, or `stop` ended it.
    """
    stop, failed = stop or StopToken(), dict[str, str]()
    trainings = prepared(config, stop, failed)
    if not trainings:
        raise InpaintError(f"no category can be trained: {_said(failed)}")
    # Of like lengths together: all in a process then end at about the same time.
    trainings = sorted(trainings, key=lambda training: (-training.total, training.name))
    pool, together = config.pool, config.together
    lines, untrained = train_side_by_side(
        trainings, AdapterWorker, config.output, DONE, pool=pool, together=together, stop=stop, announce=announce
    )
    failed |= untrained
    rows = [{"category": line["id"], **line} for line in lines]
    rows += [{"category": name, "error": why} for name, why in failed.items()]
    write_table(config.output, TABLE, COLUMNS, sorted(rows, key=lambda row: str(row["category"])))
    if not lines:
        raise InpaintError(f"no adapter was trained: {_said(failed)}")
    return FleetReport(f"{config.output}/{TABLE}", [f"{config.output}/{line['adapter']}" for line in lines], failed)


def _said(failed: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in failed.items())
