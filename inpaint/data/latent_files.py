"""Latents that were encoded once: Arrow files below a folder or URL, each of many entries, found by their keys.

A file is an Arrow stream of one record batch per entry; its index beside it (`NAME.index`) says where each entry lies
and is written last: without it a file is none. So a killed writer leaves nothing that is half there, and several runs
may write at a time. Guaranteed: an entry that is read has the bytes that were written (a checksum each). Not covered:
a limit so small that runs side by side remove each other's entries while they read them.
"""

import hashlib
import os
import time
import uuid
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inpaint.data.quarantine import Reason
from inpaint.data.storage import Root, Where, open_root, read_file, write_file
from inpaint.errors import BadRow

DATA, INDEX, USED = ".arrows", ".index", ".used"
"""How the names of a file, of its index and of the mark of its last use end."""
TOUCH_S = 3600.0
"""A use is noted at most so often."""
OPEN_FILES = 256
FETCHERS = 16
ENTRY = pa.schema(
    [
        ("key", pa.binary(32)),
        ("moments", pa.binary()),
        ("hole", pa.binary()),
        ("area", pa.binary()),
        ("crop_top_left", pa.list_(pa.int32(), 2)),
    ]
)
"""What is known of a variant: `moments` as they lie in memory, `hole` and `area` packed by zlib; null where there is
none."""
ADDRESS = np.dtype([("file", "i4"), ("offset", "i8"), ("length", "i4"), ("check", "u8")])
"""Where an entry lies: number of its file (-1: nowhere), first byte, bytes, and the first bytes of their BLAKE2b."""
NOWHERE = np.array((-1, 0, 0, 0), dtype=ADDRESS)
_INDEX = pa.schema([("key", pa.binary(32)), ("offset", pa.int64()), ("length", pa.int32()), ("check", pa.uint64())])


def entry(
    key: bytes, moments: np.ndarray | None, hole: bytes, area: bytes, crop_top_left: Sequence[int]
) -> dict[str, Any]:
    """One to be written. Args: hole, area: from `pack`, or empty."""
    numbers = None if moments is None else moments.tobytes()
    corner = [int(side) for side in crop_top_left]
    return dict(zip(ENTRY.names, (key, numbers, hole or None, area or None, corner), strict=True))


def pack(plane_HW: np.ndarray) -> bytes:
    """A hole or an area, uint8 H W, as entries hold it."""
    return zlib.compress(plane_HW.tobytes(), 1)


def plane_of(packed: bytes, shape: tuple[int, int]) -> np.ndarray:
    """What was packed."""
    return np.frombuffer(zlib.decompress(packed), dtype=np.uint8).reshape(shape)


def write_entries(where: Where, entries: Iterable[Mapping[str, Any]]) -> int:
    """A new file of them; returns its bytes."""
    name, pieces, lines = uuid.uuid4().hex, [ENTRY.serialize().to_pybytes()], []
    offset = len(pieces[0])
    for one in entries:
        piece = pa.RecordBatch.from_pylist([dict(one)], schema=ENTRY).serialize().to_pybytes()
        lines.append({"key": one["key"], "offset": offset, "length": len(piece), "check": _checksum(piece)})
        pieces.append(piece)
        offset += len(piece)
    pieces.append(b"\xff\xff\xff\xff\0\0\0\0")  # ends an Arrow stream
    write_file(where, f"{name}{DATA}", b"".join(pieces))
    _write_index(where, name, pa.Table.from_pylist(lines, schema=_INDEX))
    return offset


@dataclass(frozen=True)
class Stored:
    """What there is below a folder or URL; pickles."""

    where: str
    files: tuple[str, ...]
    """Names without their ends."""
    keys: pa.Array
    addresses: np.ndarray
    """Of `ADDRESS`, one for each key."""

    @classmethod
    def at(cls, where: str | os.PathLike[str]) -> "Stored":
        """All that is whole there; nothing where there is no folder."""
        root = open_root(where)
        try:
            found = root.files()
        except OSError:
            found = {}
        names = sorted(name.removesuffix(INDEX) for name in found if name.endswith(INDEX) and "/" not in name)
        names = [name for name in names if f"{name}{DATA}" in found]
        with ThreadPoolExecutor(FETCHERS) as threads:
            tables = list(threads.map(partial(_read_index, root), names))
        addresses = np.zeros(sum(map(len, tables)), dtype=ADDRESS)
        addresses["file"] = np.repeat(np.arange(len(names)), [len(table) for table in tables])
        table = pa.concat_tables([*tables, _INDEX.empty_table()])
        for column in ("offset", "length", "check"):
            addresses[column] = table[column].to_numpy()
        return cls(os.fspath(where), tuple(names), table["key"].combine_chunks(), addresses)

    def find(self, keys: pa.Array) -> np.ndarray:
        """The addresses of keys, `NOWHERE` for those that are not there."""
        places = pc.index_in(keys, value_set=self.keys).fill_null(-1).to_numpy()
        return np.concatenate([self.addresses, NOWHERE[None]])[places]

    def read(self, address: np.void) -> dict[str, Any]:
        """One entry. Raises BadRow where it is gone or damaged."""
        name = f"{self.files[address['file']]}{DATA}"
        try:
            data = _opened(self.where, name).read_at(int(address["length"]), int(address["offset"]))
        except (OSError, pa.ArrowException) as error:
            raise BadRow("output", Reason.UNREADABLE, f"its latents in {name}: {error}") from error
        if _checksum(data) != address["check"]:
            again = "run it again with --resume, and they are encoded again"
            raise BadRow("output", Reason.UNREADABLE, f"its latents in {name} are damaged: {again}")
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(data), ENTRY)
        (found,) = batch.to_pylist()
        return dict(found)

    def damaged(self, addresses: np.ndarray) -> np.ndarray:
        """Which entries have other bytes than were written, bool, one for each address. Reads them all."""
        wrong = np.zeros(len(addresses), dtype=bool)
        for place, address in enumerate(addresses):
            try:
                self.read(address)
            except BadRow:
                wrong[place] = True
        return wrong

    def forget(self, keys: pa.Array) -> None:
        """Leave damaged entries out of the indices."""
        gone = pc.is_in(self.keys, value_set=keys).to_numpy(zero_copy_only=False)
        for number in np.unique(self.addresses["file"][gone]):
            name = self.files[number]
            kept = _read_index(open_root(self.where), name).filter(pa.array(~gone[self.addresses["file"] == number]))
            _write_index(self.where, name, kept)

    def note_use(self, files: Iterable[int]) -> None:
        """Remember when files were last used, for `trim`."""
        known = open_root(self.where).files() if self.files else {}
        for number in files:
            mark = f"{self.files[number]}{USED}"
            if mark not in known or time.time() - (known[mark].mtime_ns or 0) / 1e9 > TOUCH_S:
                write_file(self.where, mark, b"")


def trim(where: Where, limit: int, keep: set[str]) -> list[str]:
    """Remove the files below `where` (a cache of whatever bases and sizes) that were not used for longest, until all
    together have `limit` bytes at most; returns which. Args: keep: files, without their ends, that stay."""
    root = open_root(where)
    try:
        found = root.files()
    except OSError:
        return []
    groups: dict[str, list[str]] = {}
    for name in found:
        if name.endswith((DATA, INDEX, USED)):
            groups.setdefault(name.rsplit(".", 1)[0], []).append(name)
    used = {group: max(found[name].mtime_ns or 0 for name in names) for group, names in groups.items()}
    sizes = {group: sum(found[name].size or 0 for name in names) for group, names in groups.items()}
    total, removed = sum(sizes.values()), []
    for group in sorted(groups.keys() - keep, key=lambda group: used[group]):
        if total <= limit:
            break
        # Its index first: then it is no file any more.
        for name in sorted(groups[group], key=lambda name: not name.endswith(INDEX)):
            root.filesystem.delete_file(root.join(name))
        total -= sizes[group]
        removed.append(group)
    return removed


def _write_index(where: Where, name: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _INDEX) as writer:
        writer.write_table(table)
    write_file(where, f"{name}{INDEX}", sink.getvalue().to_pybytes())


def _read_index(root: Root, name: str) -> pa.Table:
    data = read_file(root, f"{name}{INDEX}") or b""
    try:
        with pa.ipc.open_stream(data) as reader:
            return reader.read_all().cast(_INDEX)
    except (pa.ArrowException, ValueError) as error:
        warnings.warn(f"{root}/{name}{INDEX} is damaged ({error}): what it lists is encoded again", stacklevel=2)
        return _INDEX.empty_table()


def _checksum(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@lru_cache(maxsize=OPEN_FILES)
def _opened(where: str, name: str) -> pa.NativeFile:
    file = open_root(where).at(name)
    return pa.memory_map(file.path) if file.is_local else file.filesystem.open_input_file(file.path)
