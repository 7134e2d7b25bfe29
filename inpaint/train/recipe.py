"""A recipe: one workload as one frozen, typed configuration. What is new in a workload is one subclass of `Recipe`.

It says where rows come from, how a row is read, what is trained and what is exported; `inpaint.train.run.run` does the
rest. A field that may change when a run is resumed is declared with `may_change`; every other decides what is learned.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from inpaint.data.inspection import Look
from inpaint.data.rows import Manifest
from inpaint.data.sample import ReadSettings
from inpaint.data.sources import Source
from inpaint.train.checkpoint import Progress
from inpaint.train.encoding import Encoding
from inpaint.train.objective import Objective
from inpaint.train.settings import TrainSettings, ValidationSettings, may_change


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training ended with."""

    name: str
    """Of the training, as the recipe calls its parts."""
    parameters: dict[str, Tensor]
    """By name, fp32, on the CPU: the moving average where one is kept, of the checkpoint that is to be exported."""
    progress: Progress
    """Of that checkpoint."""
    ended: int
    """Samples that the training saw in all; the exported checkpoint may be an earlier one."""
    rows: Manifest
    """What it was trained on."""


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """The settings that every workload has, and what a workload says."""

    title: ClassVar[str]
    """Of its one training, on the console."""

    data: str = may_change()
    """The rows: a path or an object-store URL."""
    output: str = may_change()
    """Folder or URL of the run: checkpoints, logs, quarantine, and what is exported."""
    max_bad_fraction: float = may_change(0.05)
    """The job stops before training when more of the rows than this cannot be used."""
    train: TrainSettings = TrainSettings()
    validation: ValidationSettings = ValidationSettings()
    resume: bool = may_change(False)
    """Continue the run in `output`, exactly: on the rows and settings it began with; nothing is listed anew."""
    recheck: bool = may_change(False)
    """With `resume`: list the data anew, open what has changed since, and refuse to go on where the rows differ."""

    @abstractmethod
    def source(self, data: str) -> Source:
        """The rows at `data`: the recipe's own, or those of its validation."""

    @abstractmethod
    def read_settings(self) -> ReadSettings:
        """How a row becomes a sample."""

    @abstractmethod
    def objective(self, device: torch.device) -> Objective:
        """What is trained, built on a worker; equal on every worker."""

    @abstractmethod
    def export(self, trained: Trained, folder: Path) -> None:
        """Write what the training was for."""

    def how_encoded(self) -> Encoding | None:
        """What encodes its samples, of a bound recipe; None: they are not encoded, or by the objective itself."""
        return None

    def learning_rates(self) -> dict[str, float]:
        """Its learning rates, by the names of their settings."""
        rates = [f.name for f in dataclasses.fields(self) if f.name.endswith("learning_rate")]
        return {name: getattr(self, name) for name in rates}

    def aspects(self) -> tuple[float, ...]:
        """Height over width of each shape that samples have: rows whose mask no crop of the nearest holds are named
        when they are read."""
        return (1.0,)

    def look(self) -> Look | None:
        """What refuses an image when it is read, where it takes more than one that can be decoded."""
        return None

    def check(self) -> None:
        """Refuse what can be refused before the data is read. Raises InpaintError."""
        return

    def bind(self, rows: Manifest) -> Self:
        """The recipe with everything decided that depends on the rows or on models: what workers get, and what must be
        the same when the run is resumed."""
        return self

    def in_buckets(self, rows: Manifest) -> Manifest:
        """The rows of a bound recipe, or those that it validates on, each in the bucket of the shape that it is seen
        in, where there are several."""
        return rows

    def check_rows(self, rows: Manifest) -> None:
        """Refuse rows that a bound recipe can neither train nor validate on. Raises InpaintError."""
        self.read_settings().check_categories(rows.table["category"].unique().to_pylist())

    def joined(self, recipes: Sequence[Self]) -> Self:
        """A recipe whose objective has what those of several bound ones need, in their order: for adapters that are
        trained on one base at once."""
        return self

    def parts(self, rows: Manifest) -> dict[str, Manifest]:
        """The trainings to be run, by name: one, unless the recipe splits its rows among several."""
        return {self.title: rows}

    def run_folder(self, part: str) -> str:
        """Folder or URL of one training's checkpoints and logs."""
        return self.output

    def export_folder(self, part: str) -> str:
        """Folder or URL that `export` fills."""
        return f"{self.output}/export"

    def begin(self, folder: Path) -> None:
        """Write what must lie in the run's folder before its first checkpoint."""
        return
