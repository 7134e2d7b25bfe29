"""What a million rows cost the driver: its memory and its own seconds until the first batch, and a start again.

    python -m benchmarks.manifest                   # eight minutes on 2 cores; expects at most 400 MB and 15 s
    python -m benchmarks.manifest --rows 50000      # half a minute

A CSV of products is listed, its files are inspected by Ray Data on two worker processes, the manifest is hashed and
saved beside the memory of what was seen, and the first batch is read. Each row has an image of its own (links to a few
thousand small JPEGs) and a mask that it shares with others, all made here in a temporary folder.

`driver_peak_mb` is the growth of this process's own memory (anonymous pages, 10^6 bytes; the object store is shared)
over all of that. `driver_seconds` are the CPU seconds of this process, Ray Data's loop in it included: files are opened
by others. `resume_seconds` is wall clock from the saved manifest to the first batch. Beside them: the same for a second
inspection, which finds every file as it was, and the seconds of each step.
"""

import argparse
import os
import tempfile
import threading
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import ray
from PIL import Image

from benchmarks.harness import emit, progress
from inpaint.data.pipeline import batches, read_manifest
from inpaint.data.plan import StepLayout
from inpaint.data.rows import Manifest
from inpaint.data.sample import ReadSettings
from inpaint.data.sources import CsvSource

WORKERS = 2
PHOTOS = 4000
PER_FOLDER = 1000
SETTINGS = ReadSettings(height=32, width=32)
LAYOUT = StepLayout(global_batch=16, max_micro_batch=16, workers=1)


def make_set(folder: Path, rows: int) -> Path:
    """The CSV of `rows` products, each with an image at a path of its own and one of the masks."""
    kinds = min(PHOTOS, rows)
    for i in range(kinds):
        rng = np.random.default_rng(i)
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[8 : 20 + i % 8, 8:24] = 255
        (folder / f"photo{i}.jpg").parent.mkdir(exist_ok=True)
        small.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"photo{i}.jpg", quality=85)
        Image.fromarray(mask).save(folder / f"mask{i}.png")
        for name in (f"photo{i}.jpg", f"mask{i}.png"):
            os.utime(folder / name, (1.7e9, 1.7e9))
    path = folder / "catalogue.csv"
    with path.open("w") as file:
        file.write("mask,output,prompt,category\n")
        for i in range(rows):
            if i % PER_FOLDER == 0:
                (folder / f"{i // PER_FOLDER:04d}").mkdir()
            name = f"{i // PER_FOLDER:04d}/{i % PER_FOLDER:04d}.jpg"
            os.link(folder / f"photo{i % kinds}.jpg", folder / name)
            file.write(f"mask{i % kinds}.png,{name},a product with the number {i},CDP_{i % 7}\n")
    return path


class Driver:
    """Within, this process is watched: its largest own memory above a base, in 10^6 bytes, and its CPU seconds."""

    def __init__(self, base_bytes: int) -> None:
        self.base_bytes = base_bytes
        self.peak_mb = self.seconds = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._end.wait(0.02):
            self.peak_mb = max(self.peak_mb, (own_bytes() - self.base_bytes) / 1e6)

    def __enter__(self) -> "Driver":
        self._began = time.process_time()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.process_time() - self._began
        self._end.set()
        self._thread.join()


def own_bytes() -> int:
    """Resident anonymous memory of this process; the object store and files are left out."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not say RssAnon in /proc/self/status")


def start(path: Path, run: Path, steps: dict[str, float]) -> Manifest:
    """What a run does before it trains; the wall clock of each step goes to `steps`."""
    began = time.perf_counter()
    remembered = str(run / "inspected.parquet")
    with warnings.catch_warnings(record=True):
        manifest, bad = read_manifest(
            CsvSource(path=path), quarantine=str(run / "q.jsonl"), memory=remembered, crop_aspects=(1.0,)
        )
    assert not bad, bad[:3]
    steps["read_manifest"] = time.perf_counter() - began
    began = time.perf_counter()
    manifest.save(run / "manifest.parquet")
    steps["hash_and_save"] = time.perf_counter() - began
    steps["first_batch"] = first_batch(manifest)
    return manifest


def first_batch(manifest: Manifest) -> float:
    """Seconds until it is there."""
    began = time.perf_counter()
    dataset = batches(manifest, SETTINGS, seed=0, start=0, stop=16 * LAYOUT.global_batch, layout=LAYOUT)
    batch = next(iter(dataset.iter_batches(batch_size=None)))
    assert len(batch["image"]) == LAYOUT.micro_batch and not any(batch["error"])
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    ray.init(address="local", num_cpus=WORKERS, object_store_memory=2**30, include_dashboard=False, log_to_driver=False)
    details: dict[str, dict[str, float]] = {"steps": {}, "second_inspection": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("warm", "set", "run"):
            (folder / name).mkdir()
        # What is imported and started at the first use of Ray Data is not the rows' cost.
        start(make_set(folder / "warm", 64), folder / "run", {})
        progress(f"writing {rows} rows")
        path = make_set(folder / "set", rows)
        progress("inspecting them")
        base_bytes = own_bytes()
        with Driver(base_bytes) as first:
            manifest = start(path, folder / "run", details["steps"])
        assert len(manifest) == rows
        hashed = manifest.hash
        del manifest
        progress(f"{first.peak_mb:.0f} MB, {first.seconds:.1f} s; again")
        with Driver(base_bytes) as second:
            again = start(path, folder / "run", details["second_inspection"])
        assert again.hash == hashed
        del again
        details["second_inspection"] |= {"driver_peak_mb": second.peak_mb, "driver_seconds": second.seconds}
        began = time.perf_counter()
        first_batch(Manifest.load(folder / "run" / "manifest.parquet"))
        resumed = time.perf_counter() - began
        progress("taking the files away")
    figures = {"driver_peak_mb": first.peak_mb, "driver_seconds": first.seconds, "resume_seconds": resumed}
    emit("manifest", figures, rows=rows, **details)


if __name__ == "__main__":
    main()
