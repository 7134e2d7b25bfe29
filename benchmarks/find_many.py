"""Ten thousand photos looked at for products by the job itself, which is killed half-way: is its memory flat, and is
anything done twice?

    python -m benchmarks.find_many                  # some ten minutes on a core
    python -m benchmarks.find_many --photos 400     # two minutes, most of them starts

`python -m ray_jobs.find_products` with the toy finder looks at a folder of 64 px photos (links to a few hundred toy
scenes), is ended by SIGKILL with all its processes where half of them are done, and is run again. `memory_growth` (at
most 1.1): the largest sum of proportional set sizes of driver, Ray and workers over the whole, against that until a
fifth was done. `done_twice` (0): photos that the second run looked at though the list of what is done named them.
`unlike` (0): photos without a row, or with two.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import tyro
from PIL import Image

from benchmarks.harness import PeakMemory, emit, progress
from inpaint.recipes.finding import FOUND
from inpaint.toy.catalogue import render
from inpaint.toy.measure_vision import NAMED

KINDS = 300
PER_FOLDER = 1000
LOOK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is looked at."""

    photos: int = 10_000
    finder: str = "toy"


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        data, output, total = Path(folder, "photos"), Path(folder, "found"), settings.photos
        make_photos(data, total)
        command = [sys.executable, "-m", "ray_jobs.find_products", "--data", str(data), "--output", str(output)]
        command += ["--products", *NAMED, "--finder", settings.finder]
        with PeakMemory() as memory:
            began = time.monotonic()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            wait_for(output, total // 5, process)
            early = memory.peak
            wait_for(output, total // 2, process)
            kill(process)
            before = len(done(output))
            progress(f"killed with {before} of {total} done; again")
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds = time.monotonic() - began
        looked = re.search(r"(\d+) looked at, (\d+) were done", said)
        assert looked is not None, said
        rows = Counter(pq.read_table(output / "found.parquet", columns=["id"])["id"].to_pylist())
        unlike = total - len(rows) + sum(count > 1 for count in rows.values())
        figures = {
            "memory_growth": memory.peak / early,
            "done_twice": int(looked[1]) - (total - before),
            "unlike": unlike,
        }
    emit(
        "find_many",
        figures,
        peak_mb_at_a_fifth=early / 1e6,
        peak_mb=memory.peak / 1e6,
        done_before_the_kill=before,
        seconds=seconds,
        **vars(settings),
    )


def make_photos(folder: Path, count: int) -> None:
    """Links to toy scenes, a ninth of them empty."""
    kinds = [render(0, index, empty=index % 9 == 0).image for index in range(min(KINDS, count))]
    for number in range(count):
        path = folder / f"{number // PER_FOLDER:03}" / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < len(kinds):
            Image.fromarray(kinds[number]).save(path)
        else:
            kind = number % len(kinds)
            os.link(folder / "000" / f"{kind:06}.png", path)


def done(output: Path) -> list[str]:
    """Whole lines of the job's list."""
    path = output / FOUND
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []


def wait_for(output: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    while len(done(output)) < count:
        assert process.poll() is None, f"the job ended with {process.returncode}"
        time.sleep(LOOK_S)


def kill(process: subprocess.Popen[bytes]) -> None:
    """At once, with all below it."""
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    for one in below:
        one.kill()
    psutil.wait_procs(below)
    process.wait()


if __name__ == "__main__":
    main()
