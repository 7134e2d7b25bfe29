"""Our Ray Data pipeline beside torch's DataLoader, and its memory when the set grows tenfold.

    python -m benchmarks.ingest                # ten minutes on 2 cores
    python -m benchmarks.ingest --images 128 --epochs 2 --rounds 1 --skip-memory   # a minute

`images_per_s_ratio` (bar: 1.3) is over a dataset as training scripts write it, with torchvision's transforms: opened by
Pillow, upright, RGB, the short side resized to 512 (Pillow, Lanczos as in diffusers' scripts), a crop, a tensor of
floats, normalised; the mask likewise. torchvision itself is not installed: its transforms are these calls of Pillow's
and torch's.
`images_per_s_ratio_same_work` (bar: 1.0) is over a dataset of our own functions (plan, fetch, JPEG decode, OpenCV's
resize to 512, hole). All run on two worker processes without threads of OpenCV's, and the consumer turns each batch
into torch tensors. All are warm: a first epoch is not timed.
`peak_memory_ratio_10x` (bar: 1.1) is about the memory of all processes together, pages that several share counted once
(proportional set size), while a set is inspected and read once.
The JPEGs are made here, in a temporary folder, photo-like and 480 to 640 pixels wide.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import ray
import torch
from PIL import Image, ImageOps

from benchmarks.harness import PeakMemory, emit, paired_ratio, progress
from inpaint.data.pipeline import batches, read_manifest
from inpaint.data.plan import Plan, StepLayout
from inpaint.data.rows import Manifest
from inpaint.data.sample import ReadSettings, fetch, make_sample, settle_reader
from inpaint.data.sources import CsvSource

WORKERS = 2
MICRO_BATCH = 16
STORE_BYTES = 2**30
STORE_BYTES_FOR_MEMORY = 192 * 2**20
WARM_SET, WARM_POSITIONS = 64, 1024
DISTINCT = 128  # pictures drawn; larger sets hold copies of them, each in a file of its own
LAYOUT = StepLayout(global_batch=MICRO_BATCH, max_micro_batch=MICRO_BATCH, workers=1)
SETTINGS = ReadSettings(height=512, width=512)


def make_photos(folder: Path, count: int) -> Path:
    """`count` JPEGs with masks below `folder`, and the CSV that lists them."""
    lines = ["mask,output,prompt"]
    encoded: list[tuple[bytes, bytes]] = []
    for i in range(count):
        if i < DISTINCT:
            encoded.append(_photo(np.random.default_rng(i), folder))
        jpeg, png = encoded[i % DISTINCT]
        (folder / f"{i}.jpg").write_bytes(jpeg)
        (folder / f"{i}.png").write_bytes(png)
        lines.append(f"{i}.png,{i}.jpg,picture {i}")
    (folder / "data.csv").write_text("\n".join(lines))
    return folder / "data.csv"


def _photo(rng: np.random.Generator, folder: Path) -> tuple[bytes, bytes]:
    width, height = (int(n) for n in rng.integers(480, 641, 2))
    layers = np.zeros((height, width, 3))
    # Detail at every scale, weaker where finer: the statistics of a photo, and so its size as a JPEG.
    for cells in (3, 8, 24, 72, 216):
        noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layers += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)) / cells**0.5
    layers = 255 * (layers - layers.min()) / (layers.max() - layers.min())
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[height // 4 : height // 2, width // 4 : 3 * width // 4] = 255
    Image.fromarray(layers.astype(np.uint8)).save(folder / "photo.jpg", quality=90)
    Image.fromarray(mask).save(folder / "mask.png")
    return (folder / "photo.jpg").read_bytes(), (folder / "mask.png").read_bytes()


class TorchDataset(torch.utils.data.Dataset):
    """What a careful user of torch's DataLoader would write, on our functions."""

    def __init__(self, manifest: Manifest) -> None:
        self.rows = list(manifest.rows())
        self.plan = Plan.of(manifest, 0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict[str, np.ndarray | str | int]:
        _, index = self.plan.lookup(np.array([position]))
        row = self.rows[int(index[0])]
        sample = make_sample(row, fetch(row, reads_mask=SETTINGS.reads_mask), SETTINGS, 0, position)
        return {"position": position, "image": sample["image"], "hole": sample["hole"], "prompt": sample["prompt"]}


class ScriptDataset(torch.utils.data.Dataset):
    """What training scripts do with torchvision: Resize(512), CenterCrop(512), ToTensor, Normalize."""

    def __init__(self, manifest: Manifest) -> None:
        self.rows = list(manifest.rows())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | str]:
        row = self.rows[index]
        assert row.hole is not None
        image = _cropped(Image.open(f"{row.root}/{row.image}"), "RGB", Image.Resampling.LANCZOS)
        hole = _cropped(Image.open(f"{row.root}/{row.hole}"), "L", Image.Resampling.NEAREST)
        return {"image": _normalised(image), "hole": _normalised(hole) > 0, "prompt": row.prompt}


def _cropped(image: Image.Image, mode: str, how: Image.Resampling) -> Image.Image:
    image = ImageOps.exif_transpose(image).convert(mode)
    scale = SETTINGS.height / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), how)
    left, top = (image.width - SETTINGS.width) // 2, (image.height - SETTINGS.height) // 2
    return image.crop((left, top, left + SETTINGS.width, top + SETTINGS.height))


def _normalised(image: Image.Image) -> torch.Tensor:
    """Channels first, in [-1, 1]."""
    array = np.array(image, copy=True)
    pixels = torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1).contiguous()
    return pixels.to(torch.float32).div(255).sub_(0.5).div_(0.5)


def _settle(worker: int) -> None:
    settle_reader()


def torch_epochs(loader: torch.utils.data.DataLoader, epochs: int) -> float:
    """images/s"""
    began, seen = time.perf_counter(), 0
    for _ in range(epochs):
        for batch in loader:
            seen += _consume(batch["image"], batch["hole"])
    return seen / (time.perf_counter() - began)


def ray_epochs(manifest: Manifest, count: int) -> float:
    """images/s, from the call that starts to read; as in training, one execution runs through all epochs."""
    began, seen = time.perf_counter(), 0
    dataset = batches(manifest, SETTINGS, seed=0, start=0, stop=count, layout=LAYOUT)
    for batch in dataset.iter_batches(batch_size=None):
        seen += _consume(_tensor(batch["image"]), _tensor(batch["hole"]))
    return seen / (time.perf_counter() - began)


def _tensor(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        # Blocks are read in place, so they are read-only, and nothing here writes to them.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def _consume(image: torch.Tensor, hole: torch.Tensor) -> int:
    """Read a few values of each sample, so that neither side gets away without having its data here."""
    if image.dtype == torch.float32:  # channels first
        image, hole = image.permute(0, 2, 3, 1), hole[:, 0]
    assert image.shape[1:] == (512, 512, 3) and hole.shape[1:] == (512, 512), (image.shape, hole.shape)
    assert int(hole[:, ::8, ::8].amax(dim=(1, 2)).min()) > 0 and int(image[:, ::64, ::64].abs().sum()) > 0
    return len(image)


def throughput(images: int, epochs: int, rounds: int) -> dict[str, tuple[float, list[float]]]:
    """Median and all ratios of images/s, ours over each of the others."""
    count = images - images % MICRO_BATCH
    with tempfile.TemporaryDirectory() as folder, cluster(STORE_BYTES):
        manifest, _ = read_manifest(CsvSource(path=make_photos(Path(folder), count)))
        found = {}
        ray_epochs(manifest, count)
        for name, dataset in (("", ScriptDataset(manifest)), ("_same_work", TorchDataset(manifest))):
            found[f"images_per_s_ratio{name}"] = beside(dataset, manifest, epochs, rounds)
        return found


def beside(
    dataset: torch.utils.data.Dataset, manifest: Manifest, epochs: int, rounds: int
) -> tuple[float, list[float]]:
    """Median and all ratios of images/s, ours over those of a dataset on torch's DataLoader."""
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=MICRO_BATCH,
        num_workers=WORKERS,
        persistent_workers=True,
        prefetch_factor=4,
        multiprocessing_context="forkserver",
        worker_init_fn=_settle,
    )
    progress(f"warming {type(dataset).__name__}")
    torch_epochs(loader, 1)
    ours = partial(ray_epochs, manifest, epochs * len(manifest))
    return paired_ratio(ours, lambda: torch_epochs(loader, epochs), rounds)


@contextmanager
def cluster(store_bytes: int) -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=WORKERS,
        object_store_memory=store_bytes,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


def memory(images: int) -> float:
    """Peak MiB of all processes while a set is inspected and read once, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ingest", "--memory-of", str(images)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    peak = float(json.loads(answer.stdout.splitlines()[-1])["peak_mib"])
    progress(f"{images} images: peak {peak:.0f} MiB")
    return peak


def measure_memory(images: int) -> float:
    count = images - images % MICRO_BATCH
    with tempfile.TemporaryDirectory() as folder, cluster(STORE_BYTES_FOR_MEMORY):
        path = make_photos(Path(folder), count)
        # A page of the object store counts from its first touch, and stays. So both sizes first read the same number of
        # pictures, which touch it all; what is then measured is what the set's size adds.
        few = Path(folder) / "few.csv"
        few.write_text("\n".join(path.read_text().splitlines()[: WARM_SET + 1]))
        warm, _ = read_manifest(CsvSource(path=few))
        ray_epochs(warm, WARM_POSITIONS)
        sampler = PeakMemory()
        with sampler:
            manifest, _ = read_manifest(CsvSource(path=path))
            ray_epochs(manifest, count)
        return sampler.peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="size of the set")
    parser.add_argument("--epochs", type=int, default=8, help="how often the set is read each time")
    parser.add_argument("--rounds", type=int, default=5, help="how often both sides take turns")
    parser.add_argument("--memory-images", type=int, default=400, help="the smaller set of the memory comparison")
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps({"peak_mib": measure_memory(options.memory_of)}), flush=True)
        return
    found = throughput(options.images, options.epochs, options.rounds)
    figures = {name: ratio for name, (ratio, _) in found.items()}
    if not options.skip_memory:
        small, large = memory(options.memory_images), memory(10 * options.memory_images)
        figures |= {"peak_memory_ratio_10x": large / small}
    emit("ingest", figures, ratios={name: ratios for name, (_, ratios) in found.items()})


if __name__ == "__main__":
    main()
