"""Where rows come from, before any of their files was opened: a CSV of products, a folder of images, several joined.

A source lists what it states, as an Arrow table, and the rows that already failed; `data/pipeline.py` opens the files.
"""

import csv
import difflib
import io
import os
import posixpath
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from itertools import chain
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inpaint.data import quarantine
from inpaint.data.csv_records import Record, Records, is_utf8
from inpaint.data.files import PLAIN, check_relative
from inpaint.data.quarantine import Quarantined, Reason
from inpaint.data.rows import NAMES, SCHEMA, packed
from inpaint.data.storage import absolute, open_root, opened
from inpaint.errors import BadRow, InpaintError

COLUMNS = {"input": "input", "mask": "hole", "output": "image"} | {n: n for n in ("prompt", "category", "repeats")}
"""Columns of a CSV, and what rows call them."""
REQUIRED = ("output", "prompt")
IMAGES = r"(?i)\.(jpe?g|jpe|jfif|png|webp|tiff?|avif|heic|heif|gif|bmp)$"  # some only to be refused by name
OURS = r"(?:generated|composites|captioned|found|class_images-\d+-\d+|quarantine)\.jsonl"
"""Reports of our own jobs that make pictures or captions."""
HIDDEN = rf"(?i)(?:^|/)(?:\.|(?:thumbs\.db|desktop\.ini|{OURS})$)"
SHOWN = 8  # names in a warning
CHUNK = 16_384  # lines that are Python objects at a time
MOST_REPEATS = 9999

LISTED = pa.schema(
    [
        ("line", pa.int32()),  # in the CSV (the header is line 1), or number of the file in a folder, from 1
        ("caption", pa.string()),  # a text file that holds the prompt
        *(known for known in SCHEMA if known.name not in ("id", "width", "height", "digest")),
    ]
)
"""What is known of a row before its files are opened; paths are relative to `root`. Where the prompt is null,
nothing but the caption will do."""


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

    def __str__(self) -> str:
        return os.fspath(self.path)

    def listing(self) -> Listing:
        """Read the CSV; warns of unknown columns, and of cells that hold lines of their own. Raises InpaintError where
        it is absent, or lacks a required column."""
        shown = os.fspath(self.path)
        bad: list[Quarantined] = []
        with opened(shown) as file:
            records = Records(io.BufferedReader(file))
            _, first = next(records, (1, []))
            if isinstance(first, BadRow):
                raise InpaintError(f"{shown}, line 1: {first.detail}")
            header = _header(first, shown)
            _warn_of_unknown(first, shown)
            records.is_row = partial(_is_row, header, len(first))
            tables = [LISTED.empty_table()]
            while chunk := records.take(CHUNK):
                tables.append(self._table(header, len(first), chunk, bad))
            _warn_of_several_lines(records, shown)
        table = pa.concat_tables(tables).unify_dictionaries()
        listed = dict(zip(LISTED.names, table.columns, strict=True))
        del tables, table
        return Listing(packed(listed, LISTED), bad)

    def _table(self, header: list[str], width: int, chunk: list[Record], bad: list[Quarantined]) -> pa.Table:
        """The usable ones of some records, a table of `LISTED`; the others go to `bad`."""
        root = posixpath.dirname(absolute(self.path))
        plain = self._plain(header, width, [cells for _, cells in chunk])
        if plain is not None:
            return _listed(root, self.weight, {"line": [line for line, _ in chunk], **plain})
        usable = []
        for line, cells in chunk:
            values: dict[str, Any] = {}
            try:
                if isinstance(cells, BadRow):
                    raise cells
                if not any(map(str.strip, cells)):
                    continue
                values = dict(zip(header, map(str.strip, cells), strict=False), line=line)
                if len(cells) < len(header):
                    detail = f"{len(cells)} fields, the columns that are used are {len(header)}: add the missing commas"
                    raise BadRow("row", Reason.TOO_FEW_FIELDS, detail)
                if any(map(str.strip, cells[width:])):
                    detail = f"{len(cells)} fields, the header has {width}: put text with commas in quotes"
                    raise BadRow("row", Reason.TOO_MANY_FIELDS, detail)
                self._check(values)
                usable.append(values)
            except BadRow as error:
                bad.append(Quarantined.of(line, values.get("image", ""), error))
        columns = {name: [row.get(name) or None for row in usable] for name in ("line", *COLUMNS.values())}
        return _listed(root, self.weight, columns)

    def _plain(self, header: list[str], width: int, rows: list[Any]) -> dict[str, list[Any]] | None:
        """The columns of rows that need no closer look, which takes half the time; None where one does."""
        if any(isinstance(row, BadRow) or len(row) != width for row in rows) or "repeats" in header:
            return None
        columns: dict[str, list[Any]] = {
            name: [cell.strip() or None for cell in column]
            for name, column in zip(header, zip(*rows, strict=True), strict=False)
            if name
        }
        categories = set(columns.get("category", [None]))
        paths = chain(columns["image"], filter(None, chain(columns.get("input", ()), columns.get("hole", ()))))
        if (
            None in columns["image"]
            or None in columns["prompt"]
            or (self.category_required and None in categories)
            or (self.categories is not None and not categories <= set(self.categories))
            or not all(map(PLAIN.match, paths))
        ):
            return None
        return columns

    def _check(self, values: dict[str, Any]) -> None:
        """Raise BadRow for what cannot be used; paths are normalised, repeats become a number."""
        category = values.get("category") or None
        if self.category_required and category is None:
            raise BadRow("category", Reason.EMPTY_FIELD, "write the category that the row belongs to")
        if not values["image"]:
            raise BadRow("output", Reason.EMPTY_FIELD, "write the path of the image that shall be learned")
        if not values["prompt"]:
            raise BadRow("prompt", Reason.EMPTY_PROMPT, "write what the picture shows")
        if self.categories is not None and category not in self.categories:
            near = difflib.get_close_matches(category or "", self.categories, n=3, cutoff=0.4)
            shown = ", ".join(near or list(self.categories)[:5])
            raise BadRow("category", Reason.UNKNOWN_CATEGORY, f"{category!r}: nearest known: {shown}")
        repeats = values.get("repeats") or "1"
        if not repeats.isdecimal() or not 1 <= int(repeats) <= MOST_REPEATS:
            detail = f"{repeats!r}: write how often the row shall come per epoch, 1 to {MOST_REPEATS}"
            raise BadRow("repeats", Reason.NOT_A_COUNT, detail)
        values["repeats"] = int(repeats)
        for column in ("output", "input", "mask"):
            if path := values.get(COLUMNS[column]):
                values[COLUMNS[column]] = check_relative(path, column)


class Captions(StrEnum):
    """What text files beside images are."""

    WHERE_THERE = "where there"
    """The prompt of the image that one lies beside; an empty one is as none."""
    REQUIRED = "required"
    """An image without one, or with an empty one, goes to the quarantine."""
    UNREAD = "unread"
    """Nothing to us: they are not even opened."""


class FolderNames(StrEnum):
    """What the name of the folder that an image lies in says."""

    NOTHING = "nothing"
    CATEGORY = "category"
    LABEL = "label"
    REPEATS = "repeats"
    """As kohya has them: below `6_handbag` images come six times, and are called `handbag` where they have no caption.
    The first folder of such a name counts."""


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """Every image below a folder, by its extension; the prompt is in `x.txt` beside `x.png`, where there is one."""

    path: str | os.PathLike[str]
    """A local path or an object-store URL."""
    prompt: str = ""
    """The prompt of images without a text file."""
    captions: Captions = Captions.WHERE_THERE
    category: str | None = None
    """The category of every row, unless `folder_names` says it."""
    folder_names: FolderNames = FolderNames.NOTHING
    """Images in `path` itself have neither category nor label by it."""
    weight: float = 1.0
    """Share of each row in the loss."""
    repeats: int = 1
    """How often each row comes in one epoch."""
    masks: str | None = None
    """Name of a folder in `path` that holds masks instead of images: `MASKS/a/x.png` is that of `a/x.jpg`."""

    def __post_init__(self) -> None:
        if not 1 <= self.repeats <= MOST_REPEATS:
            raise InpaintError(f"repeats {self.repeats} of {self.path}: give 1 to {MOST_REPEATS}")
        if self.category is not None and self.folder_names is FolderNames.CATEGORY:
            raise InpaintError(
                f"category {self.category!r} of {self.path}, where folders' names are the categories: give one of them"
            )

    def __str__(self) -> str:
        return os.fspath(self.path)

    def listing(self) -> Listing:
        """Walk the folder, sorted by path. Raises InpaintError where it does not exist, or cannot be listed; warns of
        files that are neither images nor their captions."""
        root = absolute(self.path)
        try:
            found = open_root(root).files()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InpaintError(f"{self.path}: there is no such folder") from error
        except OSError as error:
            raise InpaintError(f"{self.path}: cannot be listed: {error}") from error
        # Bytes that are no UTF-8 come as lone surrogates, which Arrow does not take.
        odd = [name for name in found if not name.isascii() and not is_utf8(name)]
        names = pa.array([name for name in found if name not in odd] if odd else list(found), pa.string())
        masks: dict[str, str] = {}
        if self.masks is not None:
            is_mask = pc.starts_with(names, f"{self.masks}/")
            masks, names = self._masks(names.filter(is_mask).to_pylist()), names.filter(pc.invert(is_mask))
        images = names.filter(pc.match_substring_regex(names, IMAGES))
        images = images.take(pc.sort_indices(images))
        captions = pc.replace_substring_regex(images, r"(\.[^./]*)$", ".txt")
        _warn_of_others(names, images, captions, self.path)
        captioned = pc.is_in(captions, value_set=names)
        columns: dict[str, Any] = {
            "line": np.arange(1, len(images) + 1),
            "image": images,
            "hole": [masks.get(posixpath.splitext(name)[0]) for name in images.to_pylist()] if masks else None,
            "caption": None if self.captions is Captions.UNREAD else pc.if_else(captioned, captions, None),
            "prompt": None if self.captions is Captions.REQUIRED else self.prompt,
            "category": self.category,
            "repeats": self.repeats,
        }
        if self.folder_names is FolderNames.REPEATS:
            columns |= self._counted(images)
        elif self.folder_names is not FolderNames.NOTHING:
            folders = pc.extract_regex(images, r"(?:^|/)(?P<name>[^/]+)/[^/]*$")
            columns[str(self.folder_names)] = pc.struct_field(folders, "name")
        listed = _listed(root, self.weight, columns)
        bad = [
            Quarantined.of(number, ascii(name), BadRow("output", Reason.NOT_UTF8, "its name is not UTF-8: rename it"))
            for number, name in enumerate(odd, start=len(images) + 1)
            if re.search(IMAGES, name)
        ]
        if self.captions is not Captions.REQUIRED:
            return Listing(listed, bad)
        stated = zip(images.to_pylist(), captions.to_pylist(), captioned.to_pylist(), strict=True)
        bad += [
            Quarantined.of(number, image, BadRow("prompt", Reason.EMPTY_PROMPT, f"write a caption into {caption}"))
            for number, (image, caption, is_there) in enumerate(stated, start=1)
            if not is_there
        ]
        return Listing(listed.filter(captioned), bad)

    def _counted(self, images: pa.Array) -> dict[str, Any]:
        """Repeats and prompt of images by the folders that they lie in. Raises InpaintError for no count."""
        found = pc.extract_regex(images, r"(?:^|/)(?P<folder>(?P<repeats>[0-9]{1,9})_(?P<words>[^/]+))/")
        repeats = pc.fill_null(pc.struct_field(found, "repeats").cast(pa.int32()), self.repeats)
        wrong = np.flatnonzero((repeats.to_numpy() < 1) | (repeats.to_numpy() > MOST_REPEATS))
        if len(wrong):
            folder = found[int(wrong[0])]["folder"]
            raise InpaintError(f"{self.path}: folder {folder}: its images shall come 1 to {MOST_REPEATS} times")
        columns: dict[str, Any] = {"repeats": repeats}
        if self.captions is not Captions.REQUIRED:
            columns["prompt"] = pc.fill_null(pc.struct_field(found, "words"), self.prompt)
        return columns

    def _masks(self, names: list[str]) -> dict[str, str]:
        """The masks, by their images' paths without extension. Raises InpaintError where there are none."""
        below = len(f"{self.masks}/")
        found = {posixpath.splitext(name)[0][below:]: name for name in names if re.search(IMAGES, name)}
        if not found:
            raise InpaintError(f"{self.path}: no mask is in its folder {self.masks}: add them, or name no such folder")
        return found


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
                failed = found.quarantined
                why = quarantine.table(failed, len(failed)) if failed else "it lists none; check its path"
                raise InpaintError(f"{source} has no usable rows, so that its share cannot be kept: {why}")
            column = pa.array(np.full(found.table.num_rows, number, dtype=np.int32))
            tables.append(found.table.set_column(place, LISTED.field(place), column))
            bad += [
                replace(row, name=posixpath.join(str(found.table["root"][0]), row.name)) for row in found.quarantined
            ]
        return Listing(pa.concat_tables(tables).unify_dictionaries(), bad, tuple(share for _, share in self.parts))


def _listed(root: str, weight: float, columns: dict[str, Any]) -> pa.Table:
    """A table of `LISTED`, from its columns; a single value, and what is not given, is that of all rows."""
    same = {"root": root, "weight": weight, "source": 0, "repeats": 1}
    found = []
    for name, kind in zip(LISTED.names, LISTED.types, strict=True):
        values, plain = columns.get(name, same.get(name)), kind.value_type if kind == NAMES else kind
        if values is None or isinstance(values, str | int | float):
            values = pa.repeat(pa.scalar(values, plain), len(columns["line"]))
        elif not isinstance(values, pa.Array):
            values = pa.array(values, plain)
        found.append(values.dictionary_encode() if kind == NAMES else values)
    return pa.table(found, schema=LISTED)


def _warn_of_unknown(cells: list[str], path: str) -> None:
    """Of columns that a CSV's first line names and rows do not know."""
    unknown = [cell.strip() for cell in cells if cell.strip() and cell.strip().lower() not in COLUMNS]
    if unknown:
        shown = ", ".join(map(repr, unknown[:SHOWN])) + (", ..." if len(unknown) > SHOWN else "")
        warnings.warn(f"{path}: not read: column {shown}; known are {', '.join(COLUMNS)}", stacklevel=3)


def _warn_of_several_lines(records: Records, path: str) -> None:
    """A cell may have lines of its own; or else its quote was left open, and it swallowed rows."""
    if records.of_several_lines:
        warnings.warn(
            f"{path}: {records.of_several_lines} rows have lines within quotes, {records.further_lines} in all (the "
            f"first row begins in line {records.first_of_several}); they are used as they are: if no cell shall have "
            "several lines, a quote is not closed there",
            stacklevel=3,
        )


def _warn_of_others(names: pa.Array, images: pa.Array, captions: pa.Array, path: str | os.PathLike[str]) -> None:
    """Of files below a folder that are left out because of their names, but for hidden ones, Windows' own and ours."""
    others = names.filter(pc.invert(pc.is_in(names, value_set=pa.concat_arrays([images, captions]))))
    others = others.filter(pc.invert(pc.match_substring_regex(others, HIDDEN)))
    if len(others):
        kinds = Counter(posixpath.splitext(name)[1] or "no extension" for name in others.to_pylist())
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(SHOWN))
        warnings.warn(
            f"{path}: {len(others)} files are not read, for their names are neither an image's nor its caption's: "
            f"{shown} (the first: {pc.min(others)})",
            stacklevel=3,
        )


def _is_row(header: list[str], width: int, line: str) -> bool:
    """Whether a line that a quote might have swallowed is a row by itself: an image's name stands where it belongs, no
    quote that began before the line ends in it, and it has all cells or an open quote of its own."""
    image, cells = header.index("image"), next(csv.reader([line]), [])
    if len(cells) <= image or not re.search(IMAGES, cells[image].strip()) or '"' in "".join(cells[: image + 1]):
        return False
    return len(cells) == width or line.count('"') % 2 == 1


def _header(cells: list[str], path: str) -> list[str]:
    """What rows call each column up to the last that we know, "" for others. Raises InpaintError for missing or doubled
    ones."""
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
    return [COLUMNS.get(name, "") for name in found[: 1 + max(i for i, name in enumerate(found) if name in COLUMNS)]]
