"""What a fleet gains: adapters trained together in one process, against one after another; and a CSV against commands.

    python -m benchmarks.fleet

First, in this process: 8 categories of the toy catalogue with 4 rows each per step, all in each forward and backward,
against one after another (`train_alone`, which the DreamBooth job's actors run), in turn; each side loads the base as
often as it needs it. Then `python -m ray_jobs.fleet` with 32 categories in one CSV, against
`python -m ray_jobs.train_category_lora` for each of them: start-up counted, and with `--commands` fewer than 32 the
time of the rest taken from those that ran (printed in `commands_run`). Bars: `throughput_ratio` >= 1.5 at
`max_parameter_difference` <= 1e-5, `fleet_time_ratio` >= 4. Some ten minutes on two quiet cores.
"""

import csv
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from benchmarks.harness import emit, paired_ratio, progress
from inpaint.cluster import connect
from inpaint.device import use_cores
from inpaint.recipes.fleet import Fleet
from inpaint.stopping import StopToken
from inpaint.toy.catalogue import write_catalogue
from inpaint.train.alone import train_alone
from inpaint.train.run import prepared, trained_by
from inpaint.train.settings import ValidationSettings
from inpaint.train.together import train_together
from inpaint.train.trainer import Training

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    together: int = 8
    """Categories in one process."""
    batch: int = 4
    """Rows of each per step."""
    samples: int = 400
    """Of each."""
    rounds: int = 2
    fleet: int = 32
    """Categories of the CSV."""
    fleet_samples: int = 160
    """Of each of them."""
    commands: int = 4
    """Of the single trainings that the fleet is compared with, so many are run; 0: this part is left out."""


def catalogue(folder: Path, categories: int, rows: int) -> Path:
    """A CSV of so many categories with so many rows each, two backgrounds in turn."""
    path = write_catalogue(folder, seed=3, count=categories * rows)
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows({**line, "category": f"KIND{i // rows:02}"} for i, line in enumerate(lines))
    return path


def trainings(settings: Settings, data: Path, output: Path) -> list[Training]:
    """One of each category."""
    recipe = Fleet.of_preset("toy", data=str(data), output=str(output))
    train = replace(recipe.train, samples=settings.samples, global_batch=settings.batch)
    return prepared(replace(recipe, train=train, validation=ValidationSettings(samples=0)), StopToken())


def difference(one: list[Training], other: list[Training]) -> float:
    """The largest between parameters of one name."""
    pairs = [
        [trained_by(t, progress) for t in pair if (progress := t.store.progress()) is not None]
        for pair in zip(one, other, strict=True)
    ]
    return max(float((a.parameters[n] - b.parameters[n]).abs().max()) for a, b in pairs for n in a.parameters)


def in_one_process(settings: Settings, folder: Path) -> tuple[float, list[float], float]:
    """Ratio of samples/s, those of the rounds, and the largest difference of a parameter."""
    data, ended = catalogue(folder / "data", settings.together, 12), dict[str, list[Training]]()
    rows = settings.together * settings.samples

    def timed(name: str) -> float:
        made = trainings(settings, data, folder / f"{name}-{time.time_ns()}")
        started = time.monotonic()
        if name == "together":
            train_together(made, CPU, 1)
        else:
            for one in made:
                train_alone(one, CPU, 1)
        ended[name] = made
        return rows / (time.monotonic() - started)

    ratio, ratios = paired_ratio(lambda: timed("together"), lambda: timed("alone"), settings.rounds)
    return ratio, ratios, difference(ended["together"], ended["alone"])


def as_commands(settings: Settings, folder: Path) -> tuple[float, float]:
    """Seconds of the fleet's command, and of as many commands as it has categories."""
    data = catalogue(folder / "data", settings.fleet, 6)
    shared = ["--train.samples", str(settings.fleet_samples), "--train.global-batch", str(settings.batch)]
    shared += ["--validation.samples", "0", "--card-samples", "0"]

    def seconds(command: str, csv_file: Path, name: str) -> float:
        started = time.monotonic()
        paths = ["--data", str(csv_file), "--output", str(folder / name)]
        subprocess.run([sys.executable, "-m", f"ray_jobs.{command}", *paths, *shared], check=True, stdout=sys.stderr)
        progress(f"{command} {name}: {time.monotonic() - started:.1f} s")
        return time.monotonic() - started

    with data.open(newline="") as file:
        lines = list(csv.DictReader(file))
    times = []
    for number in range(settings.commands):
        own = data.with_name(f"{number}.csv")
        with own.open("w", newline="") as file:
            writer = csv.DictWriter(file, lines[0])
            writer.writeheader()
            writer.writerows(line for line in lines if line["category"] == f"KIND{number:02}")
        times.append(seconds("train_category_lora", own, f"alone-{number}"))
    return seconds("fleet", data, "fleet"), sum(times) / len(times) * settings.fleet


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    use_cores(1)
    connect()
    with tempfile.TemporaryDirectory() as temporary:
        ratio, ratios, largest = in_one_process(settings, Path(temporary) / "process")
        figures = {"throughput_ratio": ratio, "max_parameter_difference": largest}
        details: dict[str, object] = {"ratios": ratios, "settings": vars(settings)}
        if settings.commands:
            fleet, commands = as_commands(settings, Path(temporary) / "commands")
            figures["fleet_time_ratio"] = commands / fleet
            details |= {"fleet_s": fleet, "commands_s": commands, "commands_run": settings.commands}
    emit("fleet", figures, **details)


if __name__ == "__main__":
    main()
