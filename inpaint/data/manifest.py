"""The table of usable rows: what a run trains on, and the hash by which a resumed run knows it again.

Guarantees: the hash covers every field of every row, their order, and (through `Row.digest`) the bytes of the
files; it does not depend on where the folder lies. Not covered: a file that changes after the manifest was made.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from inpaint.errors import InpaintError

SHOWN = 8  # rows named in a difference before the rest is only counted

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("input", pa.string()),
        ("hole", pa.string()),
        ("prompt", pa.string()),
        ("category", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("weight", pa.float64()),
        ("digest", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One usable row. Paths are relative to the manifest's root, with forward slashes."""

    id: str
    """Stable name: the image's path, with `#2`, `#3`, ... where several rows use the same image."""
    image: str
    """What the model shall paint (the CSV's `output`)."""
    input: str | None = None
    """What the model sees outside the hole; None: `image` with the hole blanked."""
    hole: str | None = None
    """White = paint; None: all but a random centre crop."""
    prompt: str = ""
    category: str | None = None
    width: int
    """Of `image`, in pixels, after its EXIF orientation was applied."""
    height: int
    weight: float = 1.0
    """Share of the row in the loss."""
    digest: str
    """sha256 of the bytes of `image`, `input` and `hole`, in hex."""


@dataclass(frozen=True)
class Manifest:
    """Usable rows, in the source's order, below `root` (a folder or an object-store URI)."""

    rows: tuple[Row, ...]
    root: str

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def hash(self) -> str:
        """sha256 over the rows in order, in hex; independent of `root`."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps(asdict(row), sort_keys=True).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories that occur, sorted."""
        return tuple(sorted({row.category for row in self.rows if row.category is not None}))

    @property
    def has_inputs(self) -> bool:
        return any(row.input is not None for row in self.rows)

    def table(self) -> pa.Table:
        """The rows as an Arrow table of `SCHEMA`, one line per row."""
        columns = {name: [getattr(row, name) for row in self.rows] for name in SCHEMA.names}
        return pa.table(columns, schema=SCHEMA)

    def save(self, path: str | Path) -> None:
        """Write one parquet file; `root` and `hash` are in its metadata."""
        metadata = {"root": self.root, "hash": self.hash}
        pq.write_table(self.table().replace_schema_metadata(metadata), path)

    @classmethod
    def load(cls, path: str | Path) -> "Manifest":
        """Read what `save` wrote. Raises InpaintError where its content does not match its recorded hash."""
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        manifest = cls(rows_of(table), metadata.get(b"root", b"").decode())
        recorded = metadata.get(b"hash", b"").decode()
        if recorded != manifest.hash:
            raise InpaintError(
                f"{path}: its rows hash to {manifest.hash[:12]}, it says {recorded[:12] or 'nothing'}: "
                "the file was changed; make the manifest again from its source"
            )
        return manifest

    def difference(self, other: "Manifest") -> str:
        """What a reader must know to see why `other` (now) is not `self` (then); empty where they are equal."""
        if self.hash == other.hash:
            return ""
        then, now = _by_id(self.rows), _by_id(other.rows)
        lines = [f"{len(self.rows)} rows then, {len(other.rows)} now"]
        lines += _named("removed", [i for i in then if i not in now])
        lines += _named("added", [i for i in now if i not in then])
        changed = [f"{i} ({_changes(then[i], now[i])})" for i in then if i in now and then[i] != now[i]]
        lines += _named("changed", changed)
        if len(lines) == 1:
            lines.append("the same rows in another order")
        return "; ".join(lines)


def rows_of(table: pa.Table) -> tuple[Row, ...]:
    """The rows of a table of `SCHEMA`."""
    return tuple(Row(**line) for line in table.select(SCHEMA.names).to_pylist())


def _by_id(rows: Iterable[Row]) -> dict[str, Row]:
    return {row.id: row for row in rows}


def _changes(then: Row, now: Row) -> str:
    names = [f.name for f in fields(Row) if getattr(then, f.name) != getattr(now, f.name)]
    return ", ".join("bytes of the files" if name == "digest" else name for name in names)


def _named(word: str, ids: list[str]) -> list[str]:
    if not ids:
        return []
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return [f"{word}: {', '.join(ids[:SHOWN])}{more}"]
