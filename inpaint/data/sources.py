"""Where rows come from, before any of their files was opened: a CSV of products, a folder of images, several joined.

A source lists what it states, as an Arrow table, and the rows that already failed; `data/pipeline.py` opens the files.
"""

import csv
import difflib
import io
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from inpaint.data.files import check_relative
from inpaint.data.quarantine import Quarantined, Reason
from inpaint.data.rows import NAMES
from inpaint.data.storage import Root, absolute, open_root, opened
from inpaint.errors import BadRow, InpaintError

COLUMNS = ("input", "mask", "output", "prompt", "category", "repeats")
REQUIRED = ("output", "prompt")
PATHS = ("output", "input", "mask")
IMAGES = r"(?i)\.(jpe?g|png|webp)$"
CHUNK = 16_384  # lines that are Python objects at a time
MOST_REPEATS = 9999
# Paths and counts that need no closer look: no folder begins with a dot, nothing reads as a URL, a drive or an escape.
PLAIN_PATH = r"^([^/\\:.\x00~][^/\\:\x00]*/)*[^/\\:.\x00~][^/\\:\x00]*$"
PLAIN_COUNT = r"^[1-9][0-9]{0,3}$"

LISTED = pa.schema(
    [
        ("line", pa.int32()),  # in the CSV (the header is line 1), or number of the file in a folder, from 1
        ("root", NAMES),
        ("image", pa.string()),
        ("input", pa.string()),
        ("hole", pa.string()),
        ("caption", pa.string()),  # a text file that holds the prompt
        ("prompt", pa.string()),  # null: nothing but the caption will do
        ("category", NAMES),
        ("label", NAMES),
        ("source", pa.int32()),
        ("weight", pa.float32()),
        ("repeats", pa.int32()),
    ]
)
"""What is known of a row before its files are opened; paths are relative to `root`."""


@dataclass(frozen=True)
class Listing:
    """What a source found."""

    table: pa.Table
    """Of `LISTED`."""
    quarantined: list[Quarantined] = field(default_factory=list)
    shares: tuple[int, ...] = (1,)
    """How many samples of each joined source come in turn."""


class Source(Protocol):
    """Anything that can list rows."""

    def listing(self) -> Listing: ...


@dataclass(frozen=True, kw_only=True)
class CsvSource:
    """The category CSV: `input, mask, output, prompt, category`; white in `mask` means paint. A column `repeats`, where
    there is one, says how often the row comes in one epoch."""

    path: str | os.PathLike[str]
    """The CSV file: a local path or an object-store URL. Paths in it are relative to its folder."""
    categories: Sequence[str] | None = None
    """The categories that may occur; None: any."""
    category_required: bool = False
    """Whether a row without a category goes to the quarantine."""
    weight: float = 1.0
    """Share of each row in the loss."""

    def listing(self) -> Listing:
        """Read the CSV. Raises InpaintError where it is absent, not UTF-8, or lacks a required column."""
        shown = os.fspath(self.path)
        root = posixpath.dirname(absolute(shown))
        tables, bad = [], []
        with opened(shown) as file:
            lines = csv.reader(io.TextIOWrapper(io.BufferedReader(file), encoding="utf-8-sig", newline=""))
            try:
                header = _header(next(lines, []), shown)
                for numbers, rows in _chunks(lines):
                    table, failed = self._chunk(header, numbers, rows, root)
                    tables.append(table)
                    bad += failed
            except UnicodeDecodeError as error:
                raise InpaintError(f"{shown}: not UTF-8, after line {lines.line_num}: save it as UTF-8") from error
            except csv.Error as error:
                raise InpaintError(f"{shown}, line {lines.line_num}: not a CSV: {error}") from error
        return Listing(pa.concat_tables([LISTED.empty_table(), *tables]).unify_dictionaries(), bad)

    def _chunk(
        self, header: dict[str, int], numbers: list[int], rows: list[list[str]], root: str
    ) -> tuple[pa.Table, list[Quarantined]]:
        needed = max(header.values()) + 1
        cells = {name: [r[i].strip() if i < len(r) else "" for r in rows] for name, i in header.items()}
        keep, bad = np.ones(len(rows), dtype=bool), []
        for i in np.flatnonzero(self._doubtful(cells, [len(row) < needed for row in rows])):
            if not any(cell.strip() for cell in rows[i]):
                keep[i] = False  # a blank line
                continue
            values = {name: column[i] for name, column in cells.items()}
            try:
                self._check(values, len(rows[i]), needed)
            except BadRow as error:
                keep[i] = False
                bad.append(Quarantined.of(numbers[i], values["output"], error))
            for name, value in values.items():
                cells[name][i] = value
        kept = pa.array(keep)
        texts = {name: _texts(column).filter(kept) for name, column in cells.items()}
        return _listed(
            pa.array(numbers, pa.int32()).filter(kept),
            root,
            weight=self.weight,
            image=texts["output"],
            input=texts.get("input"),
            hole=texts.get("mask"),
            prompt=texts["prompt"],
            category=texts.get("category"),
            repeats=texts["repeats"].cast(pa.int32()).fill_null(1) if "repeats" in texts else None,
        ), bad

    def _doubtful(self, cells: dict[str, list[str]], short: list[bool]) -> np.ndarray:
        """Which rows `_check` must look at: all that it refuses or changes, and few others, bool[rows]."""
        columns = {name: _texts(column) for name, column in cells.items()}
        doubtful = np.array(short) | columns["prompt"].is_null().to_numpy(zero_copy_only=False)
        for name in columns.keys() & {*PATHS, "repeats"}:
            plain = pc.match_substring_regex(columns[name], PLAIN_COUNT if name == "repeats" else PLAIN_PATH)
            doubtful |= ~plain.fill_null(name not in REQUIRED).to_numpy(zero_copy_only=False)
        categories = columns.get("category", pa.nulls(len(short), pa.string()))
        if self.categories is not None:
            known = pc.is_in(categories, value_set=pa.array(self.categories, pa.string()))
            doubtful |= ~known.to_numpy(zero_copy_only=False)
        elif self.category_required:
            doubtful |= categories.is_null().to_numpy(zero_copy_only=False)
        return doubtful

    def _check(self, values: dict[str, str], cells: int, needed: int) -> None:
        """Raise BadRow for what cannot be used; normalises the paths in `values`."""
        if cells < needed:
            detail = f"{cells} fields, the header needs {needed}: add the missing commas"
            raise BadRow("row", Reason.TOO_FEW_FIELDS, detail)
        if self.category_required and not values.get("category"):
            raise BadRow("category", Reason.EMPTY_FIELD, "write the category that the row belongs to")
        if not values["output"]:
            raise BadRow("output", Reason.EMPTY_FIELD, "write the path of the image that shall be learned")
        if not values["prompt"]:
            raise BadRow("prompt", Reason.EMPTY_PROMPT, "write what the picture shows")
        category = values.get("category") or None
        if self.categories is not None and category not in self.categories:
            near = difflib.get_close_matches(category or "", self.categories, n=3, cutoff=0.4)
            shown = ", ".join(near or list(self.categories)[:5])
            raise BadRow("category", Reason.UNKNOWN_CATEGORY, f"{category!r}: nearest known: {shown}")
        if values.get("repeats") and not re.match(PLAIN_COUNT, values["repeats"]):
            detail = f"{values['repeats']!r}: write how often the row shall come per epoch, 1 to {MOST_REPEATS}"
            raise BadRow("repeats", Reason.NOT_A_COUNT, detail)
        for name in PATHS:
            if values.get(name):
                values[name] = check_relative(values[name], name)


class FolderNames(StrEnum):
    """What the name of the folder that an image lies in says."""

    NOTHING = "nothing"
    CATEGORY = "category"
    LABEL = "label"


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """Every JPEG, PNG and WEBP below a folder; the prompt is in `x.txt` beside `x.png`, where there is one."""

    path: str | os.PathLike[str]
    """A local path or an object-store URL."""
    prompt: str = ""
    """The prompt of images without a text file."""
    captions_required: bool = False
    """Whether an image without a text file, or with an empty one, goes to the quarantine."""
    category: str | None = None
    """The category of every row."""
    folder_names: FolderNames = FolderNames.NOTHING
    """Images in `path` itself have neither category nor label by it."""
    weight: float = 1.0
    """Share of each row in the loss."""
    repeats: int = 1
    """How often each row comes in one epoch."""

    def __post_init__(self) -> None:
        if not 1 <= self.repeats <= MOST_REPEATS:
            raise InpaintError(f"repeats {self.repeats} of {self.path}: give 1 to {MOST_REPEATS}")

    def listing(self) -> Listing:
        """Walk the folder, sorted by path. Raises InpaintError where it does not exist."""
        root = absolute(os.fspath(self.path))
        names = pa.array(_walk(open_root(root), os.fspath(self.path)), pa.string())
        images = names.filter(pc.match_substring_regex(names, IMAGES))
        images = images.take(pc.sort_indices(images))
        captions = pc.replace_substring_regex(images, r"(\.[^./]*)$", ".txt")
        captions = pc.if_else(pc.is_in(captions, value_set=names), captions, None)
        folders = None
        if self.folder_names is not FolderNames.NOTHING:
            folders = pc.struct_field(pc.extract_regex(images, r"(?:^|/)(?P<name>[^/]+)/[^/]*$"), "name")
        prompts = None if self.captions_required else pa.repeat(self.prompt, len(images))
        listed = _listed(
            pa.array(np.arange(1, len(images) + 1, dtype=np.int32)),
            root,
            weight=self.weight,
            image=images,
            caption=captions,
            prompt=prompts,
            category=folders if self.folder_names is FolderNames.CATEGORY else _constant(self.category, len(images)),
            label=folders if self.folder_names is FolderNames.LABEL else None,
            repeats=pa.repeat(pa.scalar(self.repeats, pa.int32()), len(images)),
        )
        if not self.captions_required:
            return Listing(listed)
        bare = listed.filter(captions.is_null())
        return Listing(listed.filter(captions.is_valid()), [_uncaptioned(*at) for at in _lines(bare)])


@dataclass(frozen=True)
class JoinedSource:
    """Several sources at a ratio that the plan keeps whatever their counts (`instance` and `class` folders)."""

    parts: tuple[tuple[Source, int], ...]
    """Each source, and how many of its samples come in turn. An epoch is one pass over the first."""

    def __post_init__(self) -> None:
        if not self.parts or any(share < 1 for _, share in self.parts):
            raise InpaintError(f"shares {[share for _, share in self.parts]}: give at least one source, each 1 or more")

    def listing(self) -> Listing:
        """List them one after the other. Raises InpaintError where one has no rows."""
        tables, bad = [], []
        place = LISTED.get_field_index("source")
        for number, (source, _) in enumerate(self.parts):
            found = source.listing()
            if len(found.shares) > 1:
                raise InpaintError("a joined source inside another: name all parts in one")
            if not found.table.num_rows:
                raise InpaintError(f"{source} has no usable rows, so that its share cannot be kept: check its path")
            column = pa.array(np.full(found.table.num_rows, number, dtype=np.int32))
            tables.append(found.table.set_column(place, LISTED.field(place), column))
            bad += [
                replace(row, name=posixpath.join(str(found.table["root"][0]), row.name)) for row in found.quarantined
            ]
        return Listing(pa.concat_tables(tables).unify_dictionaries(), bad, tuple(share for _, share in self.parts))


def _listed(lines: pa.Array, root: str, *, weight: float, **columns: pa.Array | None) -> pa.Table:
    """A table of `LISTED`; a column that is not given has the same value in all rows."""
    count = len(lines)
    same = {"source": 0, "weight": weight, "repeats": 1, "root": root}
    found = {"line": lines, **{name: column for name, column in columns.items() if column is not None}}
    for name in LISTED.names:
        kind = LISTED.field(name).type
        if name not in found:
            found[name] = _constant(same.get(name), count, kind.value_type if kind == NAMES else kind)
        if kind == NAMES:
            found[name] = found[name].dictionary_encode()
    return pa.table({name: found[name] for name in LISTED.names}, schema=LISTED)


def _constant(value: object, count: int, kind: pa.DataType | None = None) -> pa.Array:
    kind = kind or pa.string()
    return pa.nulls(count, kind) if value is None else pa.repeat(pa.scalar(value, kind), count)


def _texts(cells: list[str]) -> pa.Array:
    """Null where a cell is empty."""
    texts = pa.array(cells, pa.string())
    return pc.if_else(pc.equal(texts, ""), None, texts)


def _lines(table: pa.Table) -> Iterator[tuple[int, str]]:
    return zip(table["line"].to_pylist(), table["image"].to_pylist(), strict=True)


def _uncaptioned(line: int, image: str) -> Quarantined:
    caption = posixpath.splitext(image)[0] + ".txt"
    return Quarantined.of(line, image, BadRow("prompt", Reason.EMPTY_PROMPT, f"write a caption into {caption}"))


def _chunks(lines: Iterator[list[str]]) -> Iterator[tuple[list[int], list[list[str]]]]:
    """The lines' numbers, as an editor counts them, and their cells."""
    numbers: list[int] = []
    rows: list[list[str]] = []
    for cells in lines:
        numbers.append(lines.line_num)  # type: ignore[attr-defined]
        rows.append(cells)
        if len(rows) == CHUNK:
            yield numbers, rows
            numbers, rows = [], []
    if rows:
        yield numbers, rows


def _header(cells: list[str], path: str) -> dict[str, int]:
    """Column name -> index, for the columns that we know. Raises InpaintError for missing or doubled ones."""
    found = [cell.strip().lower() for cell in cells]
    missing = [name for name in REQUIRED if name not in found]
    if missing:
        shown = ", ".join(repr(cell.strip()) for cell in cells) or "nothing"
        raise InpaintError(
            f"{path}: column {', '.join(repr(m) for m in missing)} is missing; the first line has {shown}. "
            f"Columns are found by name: {', '.join(COLUMNS)} (only {' and '.join(REQUIRED)} must be there)"
        )
    doubled = [name for name in COLUMNS if found.count(name) > 1]
    if doubled:
        raise InpaintError(f"{path}: column {doubled[0]!r} occurs {found.count(doubled[0])} times in the first line")
    return {name: found.index(name) for name in COLUMNS if name in found}


def _walk(root: Root, shown: str) -> Iterator[str]:
    try:
        infos = root.filesystem.get_file_info(pafs.FileSelector(root.path, recursive=True))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InpaintError(f"{shown}: there is no such folder") from error
    for info in infos:
        if info.type == pafs.FileType.File:
            yield posixpath.relpath(info.path, root.path) if root.path else info.path
