"""What was found, as tables: a row per photo in Parquet and CSV, what was skipped, and a category CSV to train on."""

import csv
import io
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from inpaint.data.rows import Manifest
from inpaint.data.storage import absolute, open_root, read_file, written
from inpaint.errors import InpaintError

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("found", pa.bool_()),
        ("product", pa.string()),  # of the best one, as the next; of the best score seen where nothing was found
        ("score", pa.float32()),
        ("threshold", pa.float32()),
        *((name, pa.int32()) for name in ("x0", "y0", "x1", "y1")),  # pixels; the last two lie behind the box
        ("count", pa.int32()),
        ("mask", pa.string()),  # below the output: of all that was found
        ("overlay", pa.string()),
        ("reason", pa.string()),  # why it was skipped
        ("products", pa.string()),  # JSON: product, score and box of each
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
"""A row per photo."""
SKIPPED = ("id", "product", "score", "threshold", "reason")
"""Columns of `skipped.csv`."""


def read_lines(output: str, name: str) -> dict[str, dict[str, Any]]:
    """Row id -> its line in a done-list."""
    lines = map(json.loads, (read_file(output, name) or b"").splitlines())
    return {line["id"]: line for line in lines}


def write_tables(output: str, manifest: Manifest, lines: Mapping[str, Mapping[str, Any]]) -> Counter[str]:
    """Write `found.parquet`, `found.csv` and `skipped.csv`, in the manifest's order; returns how often each class was
    found, by name, and how many photos were `skipped`."""
    rows = [_row(line, row.width, row.height) for row in manifest.rows() if (line := lines.get(row.id)) is not None]
    with written(f"{output}/found.parquet") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file)
    _write_csv(f"{output}/found.csv", SCHEMA.names, rows)
    _write_csv(f"{output}/skipped.csv", SKIPPED, (row for row in rows if not row["found"]))
    return Counter(row["product"] if row["found"] else "skipped" for row in rows)


def _row(line: Mapping[str, Any], width: int, height: int) -> dict[str, Any]:
    box = dict(zip(("x0", "y0", "x1", "y1"), line["box"] or (None,) * 4, strict=True))
    names = ("id", "found", "product", "score", "threshold", "mask", "overlay", "reason")
    products = line["products"]
    plain = {name: line[name] for name in names}
    return {**plain, **box, "count": len(products), "products": json.dumps(products), "width": width, "height": height}


def _write_csv(where: str, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    columns = list(columns)
    with written(where) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@dataclass(frozen=True, kw_only=True)
class CategoryCsv:
    """Where a category CSV lies, and how what it names is reached from there."""

    path: str
    images: str
    """From its folder to the rows' root; empty: the same."""
    masks: str
    """To the output."""
    category: str | None

    @classmethod
    def of(cls, path: str, *, data: str, output: str, category: str | None) -> Self:
        """Args: data: the folder of photos, or the CSV that names them. Raises InpaintError where photos or masks are
        not below the CSV's folder, for its paths must not leave it."""
        root = posixpath.dirname(data) if data.lower().endswith(".csv") else data
        folder = posixpath.dirname(_path(path))
        below = {}
        for what, where in (("data", root), ("output", output)):
            relative = posixpath.relpath(_path(where), folder)
            if open_root(where).filesystem != open_root(path).filesystem or relative.startswith(".."):
                raise InpaintError(
                    f"csv {path}: its rows are relative to its folder, and {what} {where} is not below that: write it "
                    "into a folder that both the photos and the output are in"
                )
            below[what] = "" if relative == "." else relative
        return cls(path=path, images=below["data"], masks=below["output"], category=category)

    def write(self, manifest: Manifest, lines: Mapping[str, Mapping[str, Any]]) -> int:
        """Write a row for each photo in which something was found; returns how many. The prompt is the row's own, or
        the class's name."""
        found = [(row, line) for row in manifest.rows() if (line := lines.get(row.id)) is not None and line["found"]]
        rows = [
            {
                "input": posixpath.join(self.images, row.input) if row.input else "",
                "mask": posixpath.join(self.masks, line["mask"]),
                "output": posixpath.join(self.images, row.image),
                "prompt": row.prompt or line["product"],
                "category": self.category or row.category or category_of(line["product"]),
            }
            for row, line in found
        ]
        _write_csv(self.path, ("input", "mask", "output", "prompt", "category"), rows)
        return len(rows)


def category_of(product: str) -> str:
    """`hand bag` -> `CDP_HAND_BAG`: a word that no prompt has."""
    return "CDP_" + re.sub(r"\W+", "_", product, flags=re.ASCII).strip("_").upper()


def _path(where: str) -> str:
    """On its filesystem; links are followed, for readers do so, too."""
    root = open_root(absolute(where))
    return os.path.realpath(root.path) if root.is_local else root.path
