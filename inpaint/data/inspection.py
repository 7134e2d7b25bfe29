"""Files -> usable rows: each file that a listing names is opened and decoded once, however many rows use it.

Everything stays in Arrow columns, aligned with a table of the distinct files (`FILES`), for there may be a million.
What files told is remembered beside the run, with their size and time of change: a second inspection opens only what is
new, changed, or was refused. No ray here.
"""

import hashlib
import re
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from enum import IntEnum
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from inpaint.data.buckets import nearest
from inpaint.data.decode import PAINT, Limits, check_hole, load_hole, load_rgb, open_image, upright
from inpaint.data.files import read, stat
from inpaint.data.quarantine import Quarantined, Reason
from inpaint.data.rows import DAMAGED_PARQUET, NAMES, as_bytes, mixed, packed, read_parquet
from inpaint.data.sample import crop_size
from inpaint.data.storage import exists, open_root, written
from inpaint.errors import BadRow

FETCHED_AHEAD = 32
SETTLED_NS = 2 * 10**9  # a file that changed just before it was opened may change again within its clock's tick
PIECE = 65_536
SHOWN = 10


class Kind(IntEnum):
    """What a file is opened as."""

    IMAGE = 0
    HOLE = 1
    CAPTION = 2


USES = (
    ("image", "output", Kind.IMAGE),
    ("input", "input", Kind.IMAGE),
    ("hole", "mask", Kind.HOLE),
    ("caption", "prompt", Kind.CAPTION),
)
"""Columns of a listing that name files, what users call them, and what they hold."""
FILES = pa.schema([("root", NAMES), ("path", pa.string()), ("kind", pa.int8())])
TOLD = pa.schema(
    [
        ("bytes", pa.int64()),
        ("modified", pa.int64()),  # nanoseconds since 1970; null: not known
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("wide", pa.int32()),  # of what a hole paints, from its first to its last column
        ("high", pa.int32()),
        ("digest", pa.binary(32)),
        ("text", pa.string()),
        ("reason", pa.string()),  # why it cannot be used
        ("detail", pa.string()),
        ("warned", pa.string()),  # what Pillow says of it, though it can be used
    ]
)
"""What a file told when it was opened."""
MEMORY = pa.schema([*FILES, *TOLD])
Look = Callable[[np.ndarray], object]
"""Called with an image, upright, uint8 H W 3; raises BadRow where it cannot be used."""
Places = dict[str, np.ndarray]
"""Column of a listing -> which file each row names in it, int32[rows]; -1: none."""


def files_of(listed: pa.Table) -> tuple[pa.Table, Places]:
    """The distinct files of a listing, a table of `FILES`, and where each row's are in it."""
    roots = listed["root"].combine_chunks()
    places = {name: np.full(listed.num_rows, -1, dtype=np.int32) for name, *_ in USES}
    files, count = [FILES.empty_table()], 0
    for number, root in enumerate(roots.dictionary.to_pylist()):
        rows = np.flatnonzero(roots.indices.to_numpy() == number)
        own = listed if len(rows) == listed.num_rows else listed.take(pa.array(rows))
        for kind in Kind:
            names = [name for name, _, held in USES if held == kind and own[name].null_count < len(rows)]
            every = pa.chunked_array([chunk for name in names for chunk in own[name].chunks], pa.string())
            every = every.combine_chunks().dictionary_encode()
            for i, name in enumerate(names):
                found = every.indices.slice(i * len(rows), len(rows))
                places[name][rows] = pc.add(found, count).fill_null(-1).to_numpy()
            found = len(every.dictionary)
            columns = [pa.repeat(root, found).dictionary_encode(), every.dictionary, np.full(found, kind, np.int8)]
            files.append(pa.table(columns, schema=FILES))
            count += found
    return pa.concat_tables(files).unify_dictionaries().combine_chunks(), places


def inspect_files(
    files: pa.Table, limits: Limits, fetchers: Executor | None, remember: bool, look: Look | None = None
) -> pa.Table:
    """Open and decode files, a table of `FILES`, or of `MEMORY` where some are remembered.

    Returns them with what they told, a table of `MEMORY`.

    Args:
        fetchers: fetch files ahead of the one that is decoded; None: each is read when it is its turn.
        remember: ask for the files' times, and do not open those that are as they were.
        look: called with each image.
    """

    def fetch(line: dict[str, Any]) -> tuple[dict[str, Any], bytes | None]:
        """What is known of a file, and its bytes where they are to tell the rest. Raises BadRow."""
        root, path, modified = open_root(line["root"]), line["path"], None
        if remember:
            size, modified = stat(root, path)
            if modified is not None and (size, modified) == (line.get("bytes"), line.get("modified")):
                return line, None
        data = read(root, path, Kind(line["kind"]).name, limits.max_bytes)
        settled = modified is not None and time.time_ns() - modified > SETTLED_NS and size == len(data)
        return {"bytes": len(data), "modified": modified if settled else None}, data

    lines = files.to_pylist()
    calls: Iterator[Callable[[], Any]] = (partial(fetch, line) for line in lines)
    if fetchers is not None:
        calls = _ahead(fetchers, calls)
    told = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for line, fetched in zip(lines, calls, strict=True):
            caught.clear()
            try:
                found, data = fetched()
                content = {} if data is None else _content(Kind(line["kind"]), line["path"], data, limits, look)
                told.append(found | ({"warned": _kind(caught[0])} if caught else {}) | content)
            except BadRow as error:
                told.append({"reason": str(error.reason), "detail": error.detail})
    columns = [*files.select(FILES.names).columns, *pa.Table.from_pylist(told, schema=TOLD).columns]
    return pa.table(columns, schema=MEMORY)


def _ahead(pool: Executor, calls: Iterable[Callable[[], Any]]) -> Iterator[Callable[[], Any]]:
    """The calls' results, to be asked for in turn, while a few more are worked on."""
    waiting: deque[Future[Any]] = deque()
    for call in calls:
        waiting.append(pool.submit(call))
        if len(waiting) > FETCHED_AHEAD:
            yield waiting.popleft().result
    for last in waiting:
        yield last.result


def _content(kind: Kind, path: str, data: bytes, limits: Limits, look: Look | None) -> dict[str, Any]:
    """What a file holds. Raises BadRow where it cannot be used."""
    found: dict[str, Any] = {"digest": hashlib.sha256(data).digest()}
    if kind is Kind.CAPTION:
        try:
            return found | {"text": data.decode("utf-8-sig").strip()}
        except UnicodeDecodeError as error:
            detail = f"{path!r} is not UTF-8 (byte {error.start}): save it as UTF-8"
            raise BadRow("prompt", Reason.UNREADABLE, detail) from error
    if kind is Kind.IMAGE:
        if look is None:
            picture = upright(open_image(data, "output", limits), "output")
        else:
            look(np.asarray(picture := load_rgb(data, "output", limits)))
        return found | {"width": picture.width, "height": picture.height}
    hole = np.asarray(load_hole(data, "mask", limits))
    check_hole(hole, "mask")
    wide, high = (int(np.ptp(np.flatnonzero((hole >= PAINT).any(axis)))) + 1 for axis in (0, 1))
    return found | {"width": hole.shape[1], "height": hole.shape[0], "wide": wide, "high": high}


def _kind(warning: warnings.WarningMessage) -> str:
    """What a warning says, without the numbers of its case."""
    return " ".join(re.sub(r"\d+", "N", str(warning.message)).split())


def recall(memory: str, files: pa.Table, limits: Limits) -> pa.Table:
    """The files with what is remembered of them, a table of `MEMORY`, null where nothing is, or where it is over the
    limits; as they are, where there is no memory."""
    if not exists(memory):
        return files
    try:
        known, _ = read_parquet(memory, FILES)
        places = _places_in(known, files)
        del known
        sizes, _ = read_parquet(memory, pa.schema([TOLD.field(name) for name in ("bytes", "width", "height")]))
        pixels = pc.multiply(sizes["width"].cast(pa.int64()), sizes["height"].cast(pa.int64())).fill_null(0)
        usable = pc.and_(pc.less_equal(pixels, limits.max_pixels), pc.less_equal(sizes["bytes"], limits.max_bytes))
        places = np.where(np.append(usable.to_numpy(), False)[places], places, -1)
        # One at a time: all of them and what is taken of them would be in memory together.
        recalled = [_taken(read_parquet(memory, pa.schema([field]))[0][field.name], places) for field in TOLD]
    except DAMAGED_PARQUET as error:
        warnings.warn(f"{memory} cannot be read ({error}): all files are opened again", stacklevel=3)
        return files
    return pa.table([*files.columns, *recalled], schema=MEMORY)


def _taken(values: Any, places: np.ndarray) -> Any:
    """The lines of a table or column at `places`; null where -1."""
    return values.take(pa.array(places, mask=places < 0))


def _places_in(known: pa.Table, files: pa.Table) -> np.ndarray:
    """Where each file stands in a table of `FILES`, int64[files]; -1: nowhere."""
    places = np.full(files.num_rows, -1)
    for root, kind in product(files["root"].chunk(0).dictionary.to_pylist(), Kind):
        mine, theirs = (
            np.flatnonzero(pc.and_(pc.equal(table["root"], root), pc.equal(table["kind"], kind)).to_numpy())
            for table in (files, known)
        )
        paths = known["path"].take(pa.array(theirs))
        at = pc.index_in(files["path"].take(pa.array(mine)), value_set=paths).fill_null(-1).to_numpy()
        places[mine] = np.append(theirs, -1)[at]
    return places


def remember(memory: str, told: pa.Table) -> None:
    """Write what is to be remembered: all that can be used and whose time of change is known."""
    with written(memory) as file, pq.ParquetWriter(file, MEMORY) as writer:
        for start in range(0, told.num_rows, PIECE):
            piece = told.slice(start, PIECE)
            writer.write_table(piece.filter(pc.and_(pc.is_valid(piece["modified"]), pc.is_valid(piece["digest"]))))


def rows_found(
    listed: dict[str, pa.ChunkedArray], places: Places, told: pa.Table, crop_aspects: Sequence[float]
) -> tuple[pa.Table, list[Quarantined]]:
    """The usable rows, a table of `SCHEMA`, and why the others are not.

    Warns of files that Pillow warned of, of rows that repeat an earlier one, and of those whose hole no crop of
    the nearest of `crop_aspects` (height / width) can hold; all are used.

    Args:
        listed: the columns of a listing; emptied.
    """
    sizes = {name: np.append(told[name].fill_null(0).to_numpy(), 0) for name in ("width", "height", "wide", "high")}
    if (places["caption"] >= 0).any():
        texts = _taken(told["text"], places["caption"])
        listed["prompt"] = pc.if_else(pc.equal(texts, "").fill_null(True), listed["prompt"], texts)
    several = len(pc.unique(listed["root"])) > 1
    wrong = _wrong(listed, places, told, sizes)
    why = []
    for i in sorted(wrong):
        line, root, image = (listed[name][i].as_py() for name in ("line", "root", "image"))
        why.append(Quarantined.of(line, f"{root}/{image}" if several else image, wrong[i]))
    listed["digest"] = _digests(told["digest"], [places[name] for name in ("image", "input", "hole")])
    for side in ("width", "height"):
        listed[side] = pa.chunked_array([sizes[side][places["image"]]])
    if wrong:
        usable = np.delete(np.arange(len(places["image"])), list(wrong))
        for name in listed:
            listed[name] = listed[name].take(pa.array(usable))
        places = {name: where[usable] for name, where in places.items()}
    # Of one root equal paths are equal files.
    codes = listed["image"].combine_chunks().dictionary_encode().indices.to_numpy() if several else places["image"]
    _warn_of_damage(told)
    listed["id"], repeated = row_ids(listed["image"], codes)
    if repeated:
        _warn_of_repeats(listed, places)
    if crop_aspects:
        _warn_of_cut_holes(listed["id"], places, sizes, crop_aspects)
    return packed(listed), why


def _wrong(
    listed: dict[str, pa.ChunkedArray], places: Places, told: pa.Table, sizes: dict[str, np.ndarray]
) -> dict[int, BadRow]:
    """The first thing that is wrong with each row that cannot be used: a file that failed, or of another size than the
    image, or no prompt."""
    found: dict[int, BadRow] = {}
    failed = np.append(told["reason"].is_valid().to_numpy(), False)
    width, height = (sizes[side][places["image"]] for side in ("width", "height"))
    for name, field, kind in USES:
        where = places[name]
        for i in np.flatnonzero(failed[where]):
            reason, detail = (str(told[column][where[i]]) for column in ("reason", "detail"))
            found.setdefault(int(i), BadRow(field, reason, detail))
        wide, high = (sizes[side][where] for side in ("width", "height"))
        for i in np.flatnonzero((where >= 0) & (kind != Kind.CAPTION) & ((wide != width) | (high != height))):
            detail = f"{wide[i]} x {high[i]}, the output is {width[i]} x {height[i]}: make them the same size"
            found.setdefault(int(i), BadRow(field, Reason.OTHER_SIZE, detail))
    for i in np.flatnonzero(listed["prompt"].is_null().to_numpy()):
        detail = f"write a caption into {listed['caption'][i]}"
        found.setdefault(int(i), BadRow("prompt", Reason.EMPTY_PROMPT, detail))
    return found


def _digests(files: pa.ChunkedArray, places: list[np.ndarray]) -> pa.ChunkedArray:
    """Of each row: sha256 over the digests of its files, zeros where there is none."""
    known = [as_bytes(chunk.fill_null(bytes(32))) for chunk in files.chunks]
    every = np.concatenate([*known, np.zeros((1, 32), dtype=np.uint8)])
    pieces = []
    for start in range(0, len(places[0]), PIECE):
        lines = np.concatenate([every[place[start : start + PIECE]] for place in places], axis=1)
        whole = b"".join([hashlib.sha256(line).digest() for line in lines])
        pieces.append(pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(lines), [None, pa.py_buffer(whole)]))
    return pa.chunked_array(pieces, pa.binary(32))


def row_ids(images: pa.ChunkedArray, codes: np.ndarray) -> tuple[pa.ChunkedArray, bool]:
    """`#2`, `#3`, ... behind images that occurred before, which have equal codes; and whether any did."""
    order = np.argsort(codes, kind="stable")
    begins = np.flatnonzero(np.diff(codes[order], prepend=-1))
    if len(begins) == len(codes):
        return images, False
    uses = np.empty(len(codes), dtype=np.int32)
    uses[order] = np.arange(len(codes)) - np.repeat(begins, np.diff(begins, append=len(codes))) + 1
    numbers = pc.binary_join_element_wise("", pa.array(uses).cast(pa.string()), "#")
    return pc.if_else(pa.array(uses == 1), images, pc.binary_join_element_wise(images, numbers, "")), True


def _warn_of_damage(told: pa.Table) -> None:
    kinds = told["warned"].combine_chunks()
    for kind in sorted(kinds.unique().drop_null().to_pylist()):
        first, count = told["path"][pc.index(kinds, kind).as_py()], pc.sum(pc.equal(kinds, kind))
        warnings.warn(f"{count} files are used although they are damaged: {kind} (the first: {first})", stacklevel=4)


def _warn_of_repeats(rows: dict[str, pa.ChunkedArray], places: Places) -> None:
    keys = np.zeros(len(places["image"]), dtype=np.uint64)
    for name in ("image", "input", "hole"):
        keys = mixed(keys ^ places[name].astype(np.uint64))
    for name in ("prompt", "category", "label"):
        texts = (text for batch in pa.table([rows[name]], [name]).to_batches(PIECE) for text in batch[0].to_pylist())
        keys = mixed(keys ^ np.fromiter(map(hash, texts), dtype=np.int64, count=len(keys)).astype(np.uint64))
    repeats = np.setdiff1d(np.arange(len(keys)), np.unique(keys, return_index=True)[1], assume_unique=True)
    if len(repeats):
        first = rows["image"][int(repeats.min())]
        warnings.warn(f"{len(repeats)} rows repeat an earlier row (the first: {first}); they are used", stacklevel=4)


def _warn_of_cut_holes(
    ids: pa.ChunkedArray, places: Places, sizes: dict[str, np.ndarray], aspects: Sequence[float]
) -> None:
    wide, high = (sizes[name][places["hole"]] for name in ("wide", "high"))
    width, height = (sizes[name][places["image"]] for name in ("width", "height"))
    room = crop_size(width, height, np.array(aspects)[nearest(width, height, aspects)])
    is_cut = (wide > room[0]) | (high > room[1])
    is_all = (wide == room[0]) & (high == room[1]) & ((wide < width) | (high < height))
    which = np.flatnonzero(is_cut | is_all)
    if len(which):
        shown = ", ".join(ids.take(pa.array(which[:SHOWN])).to_pylist()) + (", ..." if len(which) > SHOWN else "")
        warnings.warn(
            f"{len(which)} of {len(ids)} rows have a hole that no crop of the training's shape holds beside something "
            f"that is kept ({shown}); they are used with as much of both as a crop holds",
            stacklevel=4,
        )
