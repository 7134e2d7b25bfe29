"""Encoding once, before trainings begin: what a cache lacks is encoded by a pool of actors on Ray Data.

Guarantees: an entry that is there is not encoded again, whoever made it; an actor writes a file every few rows, so that
a run that was killed goes on where it ended; an entry that is damaged is encoded again, and said. A row that cannot be
read is left out: its samples weigh nothing, as in any training.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.cloudpickle

from inpaint.cluster import Needs, cluster_nodes, reading_cpus, worker_threads
from inpaint.data.bank import crop_randomness, hole_of, is_mirrored
from inpaint.data.latent_files import ADDRESS, Stored, entry, pack, trim, write_entries
from inpaint.data.latents import Variants
from inpaint.data.pipeline import Batch, Stage, numbers
from inpaint.data.quarantine import Reason
from inpaint.data.rows import Manifest, digest_of
from inpaint.data.sample import ReadSettings, draw_hole, fetch, see, settle_reader
from inpaint.errors import BadRow, InpaintError
from inpaint.progress import ProgressBar
from inpaint.stopping import StopToken
from inpaint.train.encoding import Encoding, Latents

MOST_ROWS_PER_FILE = 64
MOST_BYTES_READ = 128 * 2**20
"""Of pixels that go to an actor together."""
BLOCKS_PER_ACTOR = 8
CHECKED_AT_A_TIME = 512
"""Entries whose checksums one task looks at."""
GIGA = 1e9
GREY = -1
"""Less N, in place of a row: what a model sees of any image of the Nth of `Variants.whole` through the whole hole."""


@dataclass(frozen=True, eq=False)
class Subset:
    """The rows of one training and what it needs of them."""

    rows: Manifest
    variants: Variants


WANTED = pa.schema([("key", pa.binary(32)), ("subset", pa.int32()), ("row", pa.int64()), ("entry", pa.int32())])
"""What is to be encoded: an entry of a row (or of `GREY`) of a subset; those of a row stand together."""


@dataclass(frozen=True)
class Encoded:
    """What was done."""

    needed: int
    """Entries."""
    made: int
    damaged: int


def encode_latents(
    subsets: Sequence[Subset],
    encoding: Encoding,
    *,
    announce: Callable[[str], None],
    stop: StopToken,
) -> Encoded:
    """Fill the cache with all that trainings need.

    Args:
        announce: called with what is needed and what lacks of it, before it begins.

    Raises:
        InpaintError: more is needed than the cache may hold, other machines do not see it, or a stop was asked for.
        ClusterTooSmall: the encoders do not fit.
    """
    assert encoding.latents is Latents.CACHED, encoding.latents
    limit, where = encoding.settings.limit_gb, encoding.spec.folder(encoding.cache)
    most, wanted = encoding.spec.bytes_per_latent(encoding.size), _wanted(subsets)
    with ProgressBar("latents") as bar:
        lacking, damaged = _lacking(where, wanted)
        if damaged:
            bar.warn(f"{damaged} entries in {where} are damaged and are encoded again")
        needed, missing = (len(entries) * most / GIGA for entries in (wanted, lacking))
        announce(
            f"{len(wanted):,} latents of {most:,} bytes, {needed:.3g} GB at most; {len(lacking):,} "
            f"({missing:.3g} GB) are encoded into {where}"
        )
        if limit is not None and needed > limit:
            raise InpaintError(
                f"encoding.limit_gb {limit:g}: this run needs {needed:.3g} GB of latents: raise it, or give fewer "
                "holes (bank.holes), or latents streamed"
            )
        made = _encode(subsets, lacking, encoding, bar, stop) if len(lacking) else 0
        if made > (Stored.at(where).find(lacking["key"])["file"] >= 0).sum():
            raise InpaintError(
                f"{encoding.cache} cannot be seen from every machine, so that latents are lost: give a shared folder "
                "or a URL as encoding.cache"
            )
        removed = [] if limit is None else trim(encoding.cache, int(limit * GIGA), _files_of(where, wanted["key"]))
        if removed:
            bar.warn(f"{len(removed)} files of {encoding.cache}, not used for longest, were removed")
    return Encoded(len(wanted), made, damaged)


def streaming(encoding: Encoding, needs: Needs, *, free_cpus: float) -> Stage:
    """What encodes beside a training. Args: free_cpus: what the training leaves for it and for reading."""
    load = partial(_streaming, encoding, worker_threads(needs.cpus_per_worker))
    return _stage(load, encoding, needs, free_cpus)


def _stage(
    load: Callable[[], Callable[[Batch], Batch]], encoding: Encoding, needs: Needs, free_cpus: float | None = None
) -> Stage:
    kind = encoding.settings.accelerator
    if kind is not None and needs.gpus_per_worker and f"accelerator_type:{kind}" not in ray.cluster_resources():
        warnings.warn(f"encoding.accelerator {kind}: no machine has one yet; encoders wait for one", stacklevel=3)
    return Stage(
        pickled=ray.cloudpickle.dumps(load),
        actors=needs.workers,
        cpus=needs.cpus_per_worker,
        gpus=needs.gpus_per_worker,
        accelerator=kind,
        free_cpus=free_cpus,
        bytes_per_row=encoding.spec.bytes_per_sample(encoding.size),
    )


def _streaming(encoding: Encoding, threads: int) -> Any:
    from inpaint.train.encoder import LatentEncoder

    encoder = LatentEncoder(encoding.load_vae, encoding.spec, threads=threads)
    return partial(encoder.encode_batch, keeps_image=encoding.keeps_image)


def _wanted(subsets: Sequence[Subset]) -> pa.Table:
    """Of `WANTED`, each key once."""
    tables = []
    for number, subset in enumerate(subsets):
        places, keys = subset.variants.keys(subset.rows)
        for n, bucket in enumerate(subset.variants.whole):
            tables.append(pa.table([[subset.variants.whole_key(bucket)], [number], [GREY - n], [0]], schema=WANTED))
        tables.append(pa.table([keys, np.full(len(keys), number), *places.T], schema=WANTED))
    found = pa.concat_tables(tables).combine_chunks()
    _, firsts = np.unique(found["key"].combine_chunks().dictionary_encode().indices, return_index=True)
    return found.take(np.sort(firsts))


def _lacking(where: str, wanted: pa.Table) -> tuple[pa.Table, int]:
    """Those that are not there, and how many of them are there, but damaged. Notes the use of the others."""
    stored = Stored.at(where)
    addresses = stored.find(wanted["key"])
    damaged = _damaged(stored, addresses)
    if damaged.any():
        stored.forget(wanted["key"].filter(damaged))
    found = (addresses["file"] >= 0) & ~damaged
    stored.note_use(np.unique(addresses["file"][found]))
    return wanted.filter(~found), int(damaged.sum())


def _files_of(where: str, keys: pa.ChunkedArray) -> set[str]:
    """Those that hold entries, as the cache calls them."""
    stored, folder = Stored.at(where), where.rsplit("/", 1)[1]
    files = np.unique(stored.find(keys)["file"])
    return {f"{folder}/{stored.files[number]}" for number in files if number >= 0}


def _damaged(stored: Stored, addresses: np.ndarray) -> np.ndarray:
    """Which of the addresses lead to something else than was written; read by tasks, file by file."""
    there = np.flatnonzero(addresses["file"] >= 0)
    order = there[np.argsort(addresses[there], order=("file", "offset"))]
    shared, check = ray.put(stored), ray.remote(_damaged_of)
    pieces = [order[start : start + CHECKED_AT_A_TIME] for start in range(0, len(order), CHECKED_AT_A_TIME)]
    wrong = np.zeros(len(addresses), dtype=bool)
    for piece, found in zip(pieces, ray.get([check.remote(shared, addresses[p]) for p in pieces]), strict=True):
        wrong[piece] = found
    return wrong


def _damaged_of(stored: Stored, addresses: np.ndarray) -> np.ndarray:
    return stored.damaged(addresses.astype(ADDRESS))


def _encode(subsets: Sequence[Subset], lacking: pa.Table, encoding: Encoding, bar: ProgressBar, stop: StopToken) -> int:
    """How many entries were made."""
    lacking, starts, changes = _by_shape(subsets, lacking)
    needs = encoding.settings.pool.needs(len(starts), data_cpus=reading_cpus(cluster_nodes()))
    most = np.diff(starts, append=len(lacking)).max()
    per_file = min(len(starts) // (needs.workers * BLOCKS_PER_ACTOR), _rows_per_file(subsets[0].variants.read, most))
    bounds = sorted({*starts[:: max(1, per_file)], *changes, len(lacking)})
    shared = ray.put((list(subsets), lacking, bounds))

    def read_task(task: Batch) -> Iterator[Batch]:
        settle_reader()
        known, entries, ends = ray.get(shared)
        for number in task["id"]:
            first, end = ends[number], ends[number + 1]
            yield _read(known, entries.slice(first, end - first))

    files = len(bounds) - 1
    dataset = numbers(files).map_batches(read_task, batch_size=None)
    load = partial(_writing, encoding, worker_threads(needs.cpus_per_worker))
    written = _stage(load, encoding, needs).after(dataset)
    written.context.enable_progress_bars = written.context.print_on_execution_start = False
    made, done = 0, 0
    for batch in written.iter_batches(batch_size=None):
        made, done = made + int(batch["made"].sum()), done + int(batch["entries"].sum())
        bar.show(done, len(lacking))
        for error in filter(None, batch["error"]):
            warnings.warn(f"a row could not be encoded and will count nothing: {error}", stacklevel=2)
        if stop.requested:
            raise InpaintError(f"stopped as asked after {done} of {len(lacking)} latents; run it again, it goes on")
    return made


def _by_shape(subsets: Sequence[Subset], entries: pa.Table) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Entries of one shape after those of another, for what an actor gets at once is of one; where those of each row
    begin, int64[rows], and where another shape does."""
    owners, rows = (entries[name].to_numpy() for name in ("subset", "row"))
    each = np.zeros(len(entries), dtype=np.int64)  # 1,000,000 times its height, and its width
    for number in np.unique(owners):
        variants, own = subsets[number].variants, owners == number
        whole = [_shape(variants.read.of_bucket(bucket)) for bucket in variants.whole]
        shapes = np.array([*(variants.read.shapes or [_shape(variants.read)]), *whole]) @ (1_000_000, 1)
        is_grey, of_rows = rows[own] <= GREY, np.zeros(own.sum(), dtype=np.int64)
        if variants.read.shapes:
            of_rows = variants.buckets[np.where(is_grey, 0, rows[own])]
        each[own] = shapes[np.where(is_grey, len(shapes) - len(whole) + GREY - rows[own], of_rows)]
    order = np.argsort(each, kind="stable")
    entries = entries.take(order)
    return entries, _row_starts(entries), np.flatnonzero(np.diff(each[order]) != 0) + 1


def _settings(variants: Variants, row: int) -> ReadSettings:
    """By which a row, or `GREY`, is seen."""
    return variants.read.of_bucket(variants.whole[GREY - row] if row <= GREY else variants.bucket_of(row))


def _shape(read: ReadSettings) -> tuple[int, int]:
    """Height and width, in pixels."""
    return read.height, read.width


def _row_starts(entries: pa.Table) -> np.ndarray:
    """Where the entries of each row begin, int64[rows]."""
    places = np.stack([entries["subset"].to_numpy(), entries["row"].to_numpy()])
    return np.flatnonzero(np.diff(places, prepend=np.iinfo(np.int32).min).any(axis=0))


def _rows_per_file(read: ReadSettings, entries_per_row: int) -> int:
    """Whose entries share a file: what lies in memory at a time, and what a kill loses, per actor."""
    return min(MOST_ROWS_PER_FILE, MOST_BYTES_READ // (4 * read.height * read.width * entries_per_row))


def _read(subsets: Sequence[Subset], wanted: pa.Table) -> Batch:
    """A line per entry: what is written of it beside its moments, and what is encoded: an image and what is cut out of
    it. In place of a row that cannot be read, one line with the reason."""
    lines: list[dict[str, Any]] = []
    for (number, row), found in groupby(wanted.to_pylist(), itemgetter("subset", "row")):
        subset, entries = subsets[number], [(line["entry"], line["key"]) for line in found]
        try:
            lines += _lines(subset, row, entries)
        except BadRow as error:
            blank = _line(_settings(subset.variants, row), b"")
            lines.append({**blank, "entries": len(entries), "error": f"{subset.rows.row(row).id}: {error}"})
    return {name: _column([line[name] for line in lines]) for name in lines[0]}


def _lines(subset: Subset, index: int, entries: Sequence[tuple[int, bytes]]) -> list[dict[str, Any]]:
    """Of one row; `entries` with their keys."""
    read, variants, lines = _settings(subset.variants, index), subset.variants, []
    if index <= GREY:
        whole = np.full(_shape(read), 255, np.uint8)
        return [_line(read, key, encodes=True, cut=whole) for _, key in entries]
    row, seen = subset.rows.row(index), dict[int, dict[str, Any]]()
    files = fetch(row, reads_mask=True)
    if digest_of(files) != row.digest:
        # Its latents would be found by what the files were.
        changed = "they changed after they were inspected: run it again with --resume --recheck, or in a new output"
        raise BadRow("output", Reason.UNREADABLE, changed)
    if not read.reads_mask:
        files.pop("hole", None)
    for which, key in entries:
        view, number = variants.view_and_hole(which)
        if view not in seen:
            mirrored = is_mirrored(row, view, read.flip_probability)
            seen[view] = see(row, files, read, crop_randomness(row, view), mirrored=mirrored)
        shown = seen[view]
        if number is None:
            area = pack(shown["area"]) if read.loss_in_mask and "area" in shown else b""
            told = {"image": shown["image"], "area": area, "crop_top_left": np.array(shown["crop_top_left"], np.int32)}
            lines.append(_line(read, key, encodes=True, **told))
        else:
            recipe, rng = hole_of(row, read.hole, view, number)
            cut = draw_hole(recipe, shown, rng)
            told = {"image": shown["input"], "cut": cut, "hole": pack(cut)}
            lines.append(_line(read, key, encodes=variants.spec.sees_masked, **told))
    return lines


def _line(read: ReadSettings, key: bytes, **told: Any) -> dict[str, Any]:
    """Of an entry; all lines have the same columns."""
    shape = _shape(read)
    pixels = {"image": np.zeros((*shape, 3), np.uint8), "cut": np.zeros(shape, np.uint8), "encodes": False}
    kept = {"hole": b"", "area": b"", "crop_top_left": np.zeros(2, np.int32)}
    return {"key": key, **pixels, **kept, "entries": 1, "error": "", **told}


def _column(values: list[Any]) -> np.ndarray:
    if isinstance(values[0], np.ndarray):
        return np.stack(values)
    if not isinstance(values[0], bytes | str):
        return np.array(values)
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _writing(encoding: Encoding, threads: int) -> Any:
    """What an actor does with the lines of a file."""
    from inpaint.train.encoder import LatentEncoder

    encoder = LatentEncoder(encoding.load_vae, encoding.spec, threads=threads)

    def write(lines: Batch) -> Batch:
        entries = []
        for place, key in enumerate(lines["key"]):
            line = {name: values[place] for name, values in lines.items()}
            if not line["error"]:
                moments = encoder.encode_one(line["image"], line["cut"]) if line["encodes"] else None
                entries.append(entry(key, moments, line["hole"], line["area"], line["crop_top_left"]))
        if entries:
            write_entries(encoding.spec.folder(encoding.cache), entries)
        made = np.array([not error for error in lines["error"]])
        return {"made": made, "entries": lines["entries"], "error": lines["error"]}

    return write
