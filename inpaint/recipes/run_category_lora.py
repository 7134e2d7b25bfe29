"""Running a category LoRA to its end: read, train (one run or several side by side), export, sample."""

import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from inpaint.data.rows import Manifest
from inpaint.data.storage import output_folder
from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import save_adapter
from inpaint.export.card import write_card
from inpaint.models.adapter import Adapter, check_adapter
from inpaint.models.info import read_base_info
from inpaint.paint.batch import paint_manifest
from inpaint.paint.settings import PaintSettings
from inpaint.paint.tasks import COMPARISONS
from inpaint.progress import ProgressBar
from inpaint.recipes.category_lora import CategoryLora, read_data, runs_of, train_one
from inpaint.train.trainer import check_cluster, check_stop, runs_side_by_side


def train_category_lora(config: CategoryLora) -> list[str]:
    """Train, export and sample; returns the adapter folders (or URLs).

    Raises:
        InpaintError: unusable data or settings, or SIGTERM ended the training (the message says how to go on).
    """
    # What can be refused without the data is refused before it is read.
    check_cluster(config.train)
    read_base_info(config.base, config.revision)
    manifest = read_data(config)
    runs = runs_of(config, manifest)
    together = min(len(runs), runs_side_by_side(config.train))
    failed = threading.Event()

    def train(name: str) -> Adapter:
        own, rows = runs[name]
        check_stop()
        if failed.is_set():
            raise InpaintError(f"{name} was not begun, for another training failed")
        try:
            progress, adapter = train_one(name, own, rows, side_by_side=together)
        except BaseException:
            failed.set()
            raise
        if adapter is None:
            raise InpaintError(f"{name} was stopped at sample {progress.samples}, checkpointed: go on with --resume")
        return adapter

    with ThreadPoolExecutor(together) as pool:
        adapters = dict(zip(runs, pool.map(train, runs), strict=True))
    with output_folder(f"{config.output}/adapters") as folder:
        for name, adapter in adapters.items():
            check_stop()
            _export(folder / name, adapter, runs[name][1], config.card_samples)
    return [f"{config.output}/adapters/{name}" for name in adapters]


def _export(folder: Path, adapter: Adapter, manifest: Manifest, samples: int) -> None:
    save_adapter(folder, adapter)
    info = read_base_info(adapter.card.base, adapter.card.base_revision)
    check_adapter(adapter, info)
    write_card(folder, info, _samples(folder, manifest, samples) if samples else [])


def _samples(folder: Path, manifest: Manifest, count: int) -> list[np.ndarray]:
    """Comparison strips of a few rows, evenly from all, painted with the adapter."""
    count = min(count, len(manifest))
    chosen = manifest.select(np.arange(count) * len(manifest) // count)
    with tempfile.TemporaryDirectory() as temporary:
        with ProgressBar("samples for the card") as bar:
            paint_manifest(chosen, PaintSettings(adapter=str(folder)), temporary, on_progress=bar.show)
        return [np.asarray(Image.open(path)) for path in sorted((Path(temporary) / COMPARISONS).rglob("*.png"))]
