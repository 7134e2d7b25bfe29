"""The table of usable rows: what a run trains on or paints, and the hash by which a resumed run knows it again.

Rows stay in Arrow: a Python object (`Row`) is made for those that are looked at, never for all of them at once.

Guarantees: the hash covers every field of every row but `root`, their order, and (through `digest`) the bytes of their
files; it depends neither on where the folders lie nor on how the table is chunked. Not covered: a file that changes
after the manifest was made.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from inpaint.data.storage import opened, written
from inpaint.errors import InpaintError
from inpaint.randomness import generator

SHOWN = 8  # rows named in a difference before the rest is only counted
PIECE = 65_536  # rows that are looked at together
NAMES = pa.dictionary(pa.int32(), pa.string())  # of few different values

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("root", NAMES),
        ("image", pa.string()),
        ("input", pa.string()),
        ("hole", pa.string()),
        ("prompt", pa.string()),
        ("category", NAMES),
        ("label", NAMES),
        ("source", pa.int32()),
        ("weight", pa.float32()),
        ("repeats", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("digest", pa.binary(32)),
    ]
)
HASHED = tuple(name for name in SCHEMA.names if name != "root")
BUCKET = pa.schema([("bucket", pa.int32())])
"""A column that a table may have besides: which of a training's shapes a row is seen in."""
DAMAGED_PARQUET = (pa.ArrowException, KeyError, OSError)
"""What `read_parquet` raises for a file that is not parquet, lacks a column, or is damaged inside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One usable row. Paths are relative to `root`, with forward slashes."""

    id: str
    """Stable name: the image's path, with `#2`, `#3`, ... where several rows use the same path."""
    root: str
    """Folder or URL that the paths are relative to."""
    image: str
    """What the model shall paint (the CSV's `output`)."""
    input: str | None = None
    """What the model sees outside the hole; None: `image` with the hole blanked."""
    hole: str | None = None
    """White = paint; None: the run's hole recipe decides."""
    prompt: str = ""
    category: str | None = None
    """What an adapter specialises in: it has a token."""
    label: str | None = None
    """The class that a model without text is told."""
    source: int = 0
    """Which of the joined sources it comes from."""
    weight: float = 1.0
    """Share of the row in the loss."""
    repeats: int = 1
    """How often it comes in one epoch of its source."""
    width: int
    """Of `image`, in pixels, after its EXIF orientation was applied."""
    height: int
    digest: str
    """sha256 of the sha256s of `image`, `input` and `hole`, in hex."""


@dataclass(frozen=True)
class Manifest:
    """Usable rows in the order of their sources."""

    table: pa.Table
    """Of `SCHEMA`, one line per row; perhaps with `BUCKET`."""
    shares: tuple[int, ...] = (1,)
    """How many samples of each source come in turn."""

    @classmethod
    def of(cls, rows: Iterable[Row], shares: tuple[int, ...] = (1,)) -> "Manifest":
        """A manifest of rows made by hand."""
        lines = [{**asdict(row), "digest": bytes.fromhex(row.digest)} for row in rows]
        return cls(pa.Table.from_pylist(lines, schema=SCHEMA), shares)

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def hash(self) -> str:
        """sha256 over shares and columns, in hex."""
        names = _hashed(self.table)
        digest = hashlib.sha256(repr((names, len(self), self.shares)).encode())
        for name in names:
            digest.update(_column_digest(self.table[name]))
        return digest.hexdigest()

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories that occur, sorted."""
        return _values(self.table["category"])

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that occur, sorted."""
        return _values(self.table["label"])

    @property
    def has_inputs(self) -> bool:
        return self.table["input"].null_count < len(self)

    @property
    def buckets(self) -> np.ndarray | None:
        """Of each row, int32; None where they are all seen in one shape."""
        return self.table["bucket"].to_numpy() if "bucket" in self.table.column_names else None

    def bucket_of(self, indices: np.ndarray) -> int | None:
        """Of rows that are all of one; None where there are no buckets, or no indices."""
        if self.buckets is None or not len(indices):
            return None
        found = np.unique(self.buckets[indices])
        assert len(found) == 1, f"rows of buckets {found} in one batch"
        return int(found[0])

    def in_buckets(self, buckets: np.ndarray) -> "Manifest":
        """The same rows, each in its bucket, int[len]."""
        table = self.table.select(SCHEMA.names)
        return Manifest(table.append_column(BUCKET.field(0), pa.array(buckets, pa.int32())), self.shares)

    def row(self, index: int) -> Row:
        """The row at `index`, 0 .. len - 1."""
        return rows_of(self.table.slice(index, 1))[0]

    def rows(self) -> Iterator[Row]:
        """All rows in order, made as they are asked for."""
        for batch in self.table.to_batches(max_chunksize=1024):
            yield from rows_of(batch)

    def select(self, chosen: str | np.ndarray) -> "Manifest":
        """The rows of a category, or those that a mask (bool[len]) or indices (int[any], in that order) name."""
        which = pc.equal(self.table["category"], chosen) if isinstance(chosen, str) else pa.array(chosen)
        pick = self.table.filter if pa.types.is_boolean(which.type) else self.table.take
        return Manifest(pick(which), self.shares)

    def split(self, share: float, seed: int) -> tuple["Manifest", "Manifest"]:
        """(the rest, a `share` of the rows that is held out). A row's side depends on its digest and the seed alone, so
        that it stays there when others come; of two images or more, each side has one, and every category and label
        stays in the rest.

        Raises:
            InpaintError: a share outside [0, 1).
        """
        if not 0 <= share < 1:
            raise InpaintError(f"held-out share {share}: give at least 0 and less than 1")
        words = as_bytes(self.table["digest"].combine_chunks())[:, :8].copy().view(np.uint64)[:, 0]
        keys = mixed(words ^ generator(seed, "held out", 0).bit_generator.random_raw())
        held = keys < np.uint64(share * 2.0**64)
        if share and len(np.unique(keys)) > 1:
            held = (held | (keys == keys.min())) & (keys != keys.max())
        for column in (self.table["category"], self.table["label"]):
            names = column.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy() + 1
            for name in np.flatnonzero(np.bincount(names, ~held) == 0):
                held &= keys != keys[names == name].max(initial=0)
        return self.select(~held), self.select(held)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one parquet file (a path or URL), whole or not at all; the hash is in its metadata."""
        shares = ",".join(map(str, self.shares))
        with written(path) as file:
            pq.write_table(self.table.replace_schema_metadata({"hash": self.hash, "shares": shares}), file)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Manifest":
        """Read what `save` wrote; no file of the rows is opened.

        Raises:
            InpaintError: no manifest is there, or its content does not match its recorded hash.
        """
        try:
            table, told = read_parquet(path, SCHEMA, BUCKET)
        except DAMAGED_PARQUET as error:
            raise InpaintError(f"{path} is no manifest ({error}): make it again from its source") from error
        found = cls(table, tuple(int(share) for share in told.get("shares", "1").split(",")))
        if told.get("hash") != found.hash:
            raise InpaintError(f"{path}: its rows have another hash than it says: the file was changed; make it again")
        return found

    def difference(self, other: "Manifest") -> str:
        """What a reader must know to see why `other` (now) is not `self` (then); empty where they are equal."""
        if self.hash == other.hash:
            return ""
        lines = [f"{len(self)} rows then, {len(other)} now"]
        for word, shown, count in (
            ("removed", *_missing(self.table, other.table)),
            ("added", *_missing(other.table, self.table)),
            ("changed", *_changed(self.table, other.table)),
        ):
            more = f" and {count - len(shown)} more" if count > len(shown) else ""
            lines += [f"{word}: {', '.join(shown)}{more}"] if count else []
        if self.shares != other.shares:
            lines.append(f"shares were {self.shares}, now {other.shares}")
        if len(lines) == 1:
            lines.append("the same rows in another order")
        return "; ".join(lines)


def packed(columns: dict[str, pa.ChunkedArray], schema: pa.Schema = SCHEMA) -> pa.Table:
    """A table whose columns are in one piece each: a few rows are then taken from a million in 0.1 ms instead of 6, and
    no memory lies between the pieces. `columns` is emptied meanwhile, so that one of them at a time is there twice."""
    found = {}
    for name in schema.names:
        found[name] = pa.table([columns.pop(name)], [name]).combine_chunks()[name]
        pa.default_memory_pool().release_unused()
    return pa.table(found, schema=schema)


def read_parquet(
    path: str | os.PathLike[str], schema: pa.Schema, may_have: pa.Schema | None = None
) -> tuple[pa.Table, dict[str, str]]:
    """The columns of `schema`, and those of `may_have` that there are, from a file at a path or URL, `packed`, and the
    file's own metadata.

    Raises:
        InpaintError: there is no such file.
        DAMAGED_PARQUET: it is not what it should be.
    """
    with opened(path) as file:
        parquet = pq.ParquetFile(file)
        told = {key.decode(): value.decode() for key, value in (parquet.schema_arrow.metadata or {}).items()}
        there = [field for field in may_have or () if field.name in parquet.schema_arrow.names]
        schema = pa.schema([*schema, *there])
        return packed({name: parquet.read([name])[name] for name in schema.names}, schema), told


def mixed(words: np.ndarray) -> np.ndarray:
    """Another uint64 for each, unlike for like ones (the finalizer of SplitMix64, Steele et al. 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def digest_of(files: Mapping[str, bytes]) -> str:
    """A row's digest, in hex, from its files by column (`image`, `input`, `hole`), all of those that it has."""
    each = (hashlib.sha256(files[name]).digest() if name in files else bytes(32) for name in ("image", "input", "hole"))
    return hashlib.sha256(b"".join(each)).hexdigest()


def as_bytes(digests: pa.Array) -> np.ndarray:
    """Digests as uint8[N, 32], none of them null."""
    data = np.frombuffer(digests.buffers()[1], dtype=np.uint8)
    return data[32 * digests.offset :][: 32 * len(digests)].reshape(-1, 32)


def rows_of(table: pa.Table | pa.RecordBatch) -> list[Row]:
    """The rows of a small table."""
    lines = table.select(SCHEMA.names).to_pylist()
    return [Row(**{**line, "digest": line["digest"].hex()}) for line in lines]


def _hashed(table: pa.Table) -> tuple[str, ...]:
    return (*HASHED, *(name for name in BUCKET.names if name in table.column_names))


def _values(column: pa.ChunkedArray) -> tuple[str, ...]:
    return tuple(sorted(value for value in pc.unique(column).to_pylist() if value is not None))


def _column_digest(column: pa.ChunkedArray) -> bytes:
    """sha256 over each value's length (-1: none) and over all values, so that no two columns run together."""
    lengths, values = hashlib.sha256(), hashlib.sha256()
    for chunk in column.chunks:
        for start in range(0, len(chunk), PIECE):
            piece = chunk.slice(start, PIECE)
            if pa.types.is_primitive(piece.type):
                values.update(piece.to_numpy(zero_copy_only=False).tobytes())
                continue
            piece = piece.cast(pa.string() if piece.type == NAMES else piece.type).cast(pa.binary())
            lengths.update(pc.fill_null(pc.binary_length(piece), -1).to_numpy(zero_copy_only=False).tobytes())
            whole = pa.ListArray.from_arrays(pa.array([0, len(piece)], pa.int32()), pc.fill_null(piece, b""))
            values.update(pc.binary_join(whole, b"")[0].as_buffer())
    return lengths.digest() + values.digest()


def _missing(of: pa.Table, there: pa.Table) -> tuple[list[str], int]:
    """The first ids of `of` that `there` has not, and how many they are."""
    ids = of["id"].filter(pc.invert(pc.is_in(of["id"], value_set=there["id"])))
    return ids.slice(0, SHOWN).to_pylist(), len(ids)


def _changed(then: pa.Table, now: pa.Table) -> tuple[list[str], int]:
    """The first rows of equal id that differ, with the names of their fields that do, and how many they are."""
    places = pc.index_in(then["id"], value_set=now["id"])
    then, now = then.filter(pc.is_valid(places)), now.take(pc.drop_null(places))
    names = [name for name in _hashed(then) if name in now.column_names]
    differs = {name: _differs(then[name], now[name]) for name in names}
    changed = np.flatnonzero(np.logical_or.reduce(list(differs.values())))
    shown = []
    for i in changed[:SHOWN]:
        told = ("bytes of the files" if name == "digest" else name for name in names if differs[name][i])
        shown.append(f"{then['id'][int(i)]} ({', '.join(told)})")
    return shown, len(changed)


def _differs(one: pa.ChunkedArray, other: pa.ChunkedArray) -> np.ndarray:
    if one.type == NAMES:
        one, other = one.cast(pa.string()), other.cast(pa.string())
    return ~pc.coalesce(pc.equal(one, other), pc.and_(pc.is_null(one), pc.is_null(other))).to_numpy()
