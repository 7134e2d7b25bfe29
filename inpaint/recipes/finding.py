"""Finding products as one job: a row per photo, masks, overlays, and a category CSV that can be trained on and painted.

Guaranteed: every photo has its row, found or skipped with the best scores seen, or is in the quarantine; a mask and an
overlay lie at a path that the photo's own path decides, and are there before the row is done.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from inpaint.data.rows import Manifest, Row
from inpaint.device import use_cores
from inpaint.errors import BadRow, InpaintError
from inpaint.paint.batch import output_names
from inpaint.paint.photos import encode_png, read_image
from inpaint.progress import ProgressBar
from inpaint.recipes.data_set import in_words, read_rows, source_of
from inpaint.recipes.found_tables import CategoryCsv, read_lines, write_tables
from inpaint.rowmap import ActorPool, ActorResources, Item, Result, key_of, map_rows
from inpaint.stopping import StopToken
from inpaint.vision.finder import Findings, FindQuery
from inpaint.vision.finders import FinderSettings, load_finder
from inpaint.vision.overlay import overlay

FOUND = "found.jsonl"
"""Done-list of the output: id, found, product, score, threshold, box, mask, overlay, reason, products, best, files."""
MASKS, OVERLAYS = "masks", "overlays"


class HoleSide(StrEnum):
    """What is white in a mask: what shall be painted."""

    PRODUCT = "product"
    BACKGROUND = "background"


@dataclass(frozen=True, kw_only=True)
class FindProducts:
    """Settings of `python -m ray_jobs.find_products`."""

    data: str
    """A folder of photos or its URL, or a CSV (`input, mask, output, prompt, category`)."""
    output: str
    """A folder or URL: `found.parquet` and `found.csv`, a row per photo; `skipped.csv`; `masks/`; `overlays/`."""
    products: tuple[str, ...]
    """Each a name, synonyms that make one box with it, and a threshold of its own: "hand bag|purse:0.4"."""
    negatives: Annotated[tuple[str, ...], tyro.conf.arg(name="not")] = ()
    """What is no product though it looks like one, such as "picture of a shoe"."""
    hole: HoleSide = HoleSide.PRODUCT
    """Which side of the masks is white, which is what is painted."""
    csv: str | None = None
    """Also write a category CSV of the photos in which something was found, at this path or URL, in a folder that the
    photos and the output are in: they can be trained on and painted."""
    category: str | None = None
    """Of all its rows; default: the row's own, or one per class, such as CDP_HAND_BAG."""
    finder: Annotated[FinderSettings, tyro.conf.arg(name="")] = FinderSettings()
    pool: Annotated[ActorPool, tyro.conf.arg(name="")] = ActorPool()

    def __post_init__(self) -> None:
        _ = self.query
        if self.csv is None and self.category is not None:
            raise InpaintError(f"category {self.category}: is for --csv; give it, or leave the category out")
        if self.csv is not None:
            _ = self.category_csv

    @property
    def query(self) -> FindQuery:
        """Raises InpaintError for names that cannot be used."""
        return FindQuery.parse(self.products, self.negatives)

    @property
    def category_csv(self) -> CategoryCsv:
        """Raises InpaintError where photos or masks are not below its folder."""
        assert self.csv is not None
        return CategoryCsv.of(self.csv, data=self.data, output=self.output, category=self.category)


def find_products(config: FindProducts, *, stop: StopToken | None = None) -> str:
    """Look at what was not looked at, write the tables, and say what was found; on the connected Ray cluster.

    Raises:
        InpaintError: data, settings or a finder that cannot be used, or `stop` was requested.
    """
    versions = config.finder.revisions()  # what is wrong with them is told before the files are read
    manifest, bad = read_rows(source_of(config.data), config.output, stop)
    with ProgressBar("finding") as bar:
        report = map_rows(
            plan_finds(manifest, config, versions),
            partial(FindWorker, config),
            config.output,
            name=FOUND,
            pool=config.pool,
            quarantined=bad,
            on_progress=bar.show,
            stop=stop,
        )
        for warned in report.warned:
            bar.warn(warned.line)
    lines = read_lines(config.output, FOUND)
    counts = write_tables(config.output, manifest, lines)
    said = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    if config.csv is not None:
        said += f"; {config.category_csv.write(manifest, lines)} rows in {config.csv}"
    return f"{said}\n{in_words(report, 'looked at', config.output)}"


@dataclass(frozen=True, kw_only=True)
class FindTask:
    """One photo to look at; plain values, for it travels."""

    row: Row
    name: str
    """Of its mask below `masks/`."""


def plan_finds(manifest: Manifest, config: FindProducts, versions: dict[str, str]) -> list[Item]:
    """An item for each row; those of like aspect beside each other, for they can share a forward."""
    settings = [sorted(versions.items()), repr(config.query), repr(config.finder), config.hole]
    names = output_names(manifest.table["id"].to_pylist())
    items = [
        Item(row.id, key_of(*settings, row.digest), FindTask(row=row, name=names[row.id])) for row in manifest.rows()
    ]
    return sorted(items, key=lambda item: item.value.row.height / item.value.row.width)


class FindWorker:
    """Looks at batches of photos, which threads read and write."""

    def __init__(self, config: FindProducts, resources: ActorResources) -> None:
        use_cores(resources.threads)
        self.config, self.query = config, config.query
        self.threads = ThreadPoolExecutor(resources.threads)
        self.finder = load_finder(config.finder, resources.device)

    def __call__(self, tasks: Sequence[FindTask]) -> list[Result | BadRow]:
        read = list(self.threads.map(_read, tasks))
        good = [(task, photo) for task, photo in zip(tasks, read, strict=True) if not isinstance(photo, BadRow)]
        findings = self.finder.find([photo for _, photo in good], self.query)
        results = iter(self.threads.map(self._result, *zip(*good, strict=True), findings) if good else ())
        return [photo if isinstance(photo, BadRow) else next(results) for photo in read]

    def _result(self, task: FindTask, photo: np.ndarray, findings: Findings) -> Result:
        products = [{"product": one.product, "score": one.score, "box": one.box} for one in findings.found]
        line = {"found": bool(products), "products": products, "left_out": findings.left_out, "best": findings.best}
        least = {product.name: product.threshold or self.finder.threshold for product in self.query.products}
        if findings.mask is None:
            nearest = max(findings.best, key=lambda name: findings.best[name] - least[name])
            negative = findings.overruled.get(nearest)
            why = "below the threshold" if negative is None else f"it is {negative!r}"
            told = {"product": nearest, "score": findings.best[nearest], "box": None, "mask": None, "overlay": None}
            return Result(line={**line, **told, "threshold": least[nearest], "reason": why})
        mask, drawing = f"{MASKS}/{task.name}", f"{OVERLAYS}/{PurePosixPath(task.name).with_suffix('.jpg')}"
        hole = findings.mask if self.config.hole is HoleSide.PRODUCT else ~findings.mask
        files = {mask: encode_png(Image.fromarray(hole)), drawing: _jpeg(overlay(photo, findings))}
        threshold = least[findings.found[0].product]
        told = {**products[0], "threshold": threshold, "mask": mask, "overlay": drawing}
        return Result(files=files, line={**line, **told, "reason": None})


def _read(task: FindTask) -> np.ndarray | BadRow:
    """What is painted on: the row's input, or its image."""
    try:
        return read_image(task.row.root, task.row.input or task.row.image)
    except BadRow as error:
        return error


def _jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=88)
    return file.getvalue()
