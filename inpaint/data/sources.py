"""Where rows come from, before any image was opened: a CSV of products, or a folder of images.

A source lists candidates and the rows that already failed; `data/pipeline.py` opens the files.
"""

import csv
import difflib
import io
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow.fs as pafs

from inpaint.data.quarantine import Quarantined, Reason
from inpaint.data.storage import Root, check_relative, open_root
from inpaint.errors import BadRow, InpaintError

COLUMNS = ("input", "mask", "output", "prompt", "category")
REQUIRED = ("output", "prompt")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A row as a source states it; paths are relative to the source's root."""

    row: int
    """Line in the CSV (the header is line 1), or number of the file in a folder, from 1."""
    image: str
    input: str | None = None
    hole: str | None = None
    prompt: str = ""
    category: str | None = None


@dataclass(frozen=True)
class Listing:
    """What a source found."""

    root: Root
    name: str
    """The root for the manifest: a URL or a path on the given filesystem as written, else an absolute path."""
    candidates: list[Candidate] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)


class Source(Protocol):
    """Anything that can list candidates."""

    def listing(self) -> Listing: ...


@dataclass(frozen=True, kw_only=True)
class CsvSource:
    """The category CSV: `input, mask, output, prompt, category`; white in `mask` means paint."""

    path: str | os.PathLike[str]
    """The CSV file: a local path or an object-store URL. Paths in it are relative to its folder."""
    categories: Sequence[str] | None = None
    """The categories that may occur; None: any."""
    category_required: bool = False
    """Whether a row without a category goes to the quarantine."""
    filesystem: pafs.FileSystem | None = None
    """Where `path` lies, if not on the local disk and not a URL."""

    def listing(self) -> Listing:
        """Read the CSV. Raises InpaintError where it is absent, not UTF-8, or lacks a required column."""
        text_path = os.fspath(self.path)
        file = open_root(text_path, self.filesystem)
        text = _read_text(file, text_path)
        name = posixpath.dirname(_recorded(text_path, file, self.filesystem))
        listing = Listing(Root(file.filesystem, posixpath.dirname(file.path)), name)
        lines = csv.reader(io.StringIO(text, newline=""))
        try:
            header = _header(next(lines, []), text_path)
            for cells in lines:
                if any(cell.strip() for cell in cells):
                    self._add(listing, header, cells, lines.line_num)
        except csv.Error as error:
            raise InpaintError(f"{text_path}, line {lines.line_num}: not a CSV: {error}") from error
        return listing

    def _add(self, listing: Listing, header: dict[str, int], cells: list[str], line: int) -> None:
        values = {name: cells[i].strip() if i < len(cells) else "" for name, i in header.items()}
        try:
            if len(cells) <= max(header.values()):
                raise BadRow(
                    "row",
                    Reason.TOO_FEW_FIELDS,
                    f"{len(cells)} fields, the header needs {max(header.values()) + 1}: add the missing commas",
                )
            if self.category_required and not values.get("category"):
                raise BadRow("category", Reason.EMPTY_FIELD, "write the category that the row belongs to")
            listing.candidates.append(_candidate(values, line, self.categories))
        except BadRow as error:
            listing.quarantined.append(Quarantined.of(line, values.get("output", ""), error))


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
    category_from_folder: bool = False
    """The category of a row is instead the name of the folder that it lies in; images in `path` itself have none."""
    filesystem: pafs.FileSystem | None = None
    """Where `path` lies, if not on the local disk and not a URL."""

    def listing(self) -> Listing:
        """Walk the folder, sorted by path. Raises InpaintError where it does not exist."""
        root = open_root(self.path, self.filesystem)
        listing = Listing(root, _recorded(os.fspath(self.path), root, self.filesystem))
        names = sorted(_walk(root, listing.name))
        captions = {name for name in names if name.lower().endswith(".txt")}
        images = [name for name in names if name.lower().endswith(SUFFIXES)]
        for number, image in enumerate(images, start=1):
            caption = posixpath.splitext(image)[0] + ".txt"
            try:
                prompt = _read_text(Root(root.filesystem, root.join(caption)), caption) if caption in captions else ""
                if self.captions_required and not prompt.strip():
                    raise BadRow("prompt", Reason.EMPTY_PROMPT, f"write a caption into {caption}")
            except BadRow as error:
                listing.quarantined.append(Quarantined.of(number, image, error))
                continue
            prompt = prompt.strip() or self.prompt
            folder = posixpath.basename(posixpath.dirname(image)) or None
            category = folder if self.category_from_folder else self.category
            listing.candidates.append(Candidate(row=number, image=image, prompt=prompt, category=category))
        return listing


def _recorded(path: str, opened: Root, filesystem: pafs.FileSystem | None) -> str:
    """What leads back to `opened` from another process, together with the same `filesystem`."""
    return path if "://" in path or filesystem is not None else opened.path


def _candidate(values: dict[str, str], line: int, categories: Sequence[str] | None) -> Candidate:
    if not values["output"]:
        raise BadRow("output", Reason.EMPTY_FIELD, "write the path of the image that shall be learned")
    if not values["prompt"]:
        raise BadRow("prompt", Reason.EMPTY_PROMPT, "write what the picture shows")
    category = values.get("category") or None
    if categories is not None and category not in categories:
        near = difflib.get_close_matches(category or "", categories, n=3, cutoff=0.4) or list(categories)[:5]
        raise BadRow("category", Reason.UNKNOWN_CATEGORY, f"{category!r}: nearest known: {', '.join(near)}")
    paths = {name: check_relative(values[name], name) for name in ("output", "input", "mask") if values.get(name)}
    return Candidate(
        row=line,
        image=paths["output"],
        input=paths.get("input"),
        hole=paths.get("mask"),
        prompt=values["prompt"],
        category=category,
    )


def _header(cells: list[str], path: str) -> dict[str, int]:
    """Column name -> index, for the columns that we know. Raises InpaintError for missing or doubled ones."""
    found = [cell.strip().lower() for cell in cells]
    missing = [name for name in REQUIRED if name not in found]
    if missing:
        shown = ", ".join(repr(cell.strip()) for cell in cells) or "nothing"
        raise InpaintError(
            f"{path}: column {', '.join(repr(m) for m in missing)} is missing; the first line has {shown}. "
            f"Columns are found by name: {', '.join(COLUMNS)} (input, mask and category may be left out)"
        )
    doubled = [name for name in COLUMNS if found.count(name) > 1]
    if doubled:
        raise InpaintError(f"{path}: column {doubled[0]!r} occurs {found.count(doubled[0])} times in the first line")
    return {name: found.index(name) for name in COLUMNS if name in found}


def _read_text(file: Root, shown: str) -> str:
    try:
        with file.filesystem.open_input_stream(file.path) as stream:
            data = stream.read()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InpaintError(f"{shown}: there is no such file") from error
    except OSError as error:
        raise InpaintError(f"{shown}: cannot be read: {error}") from error
    try:
        return bytes(data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InpaintError(f"{shown}: not UTF-8 (byte {error.start}): save it as UTF-8") from error


def _walk(root: Root, shown: str) -> Iterator[str]:
    try:
        infos = root.filesystem.get_file_info(pafs.FileSelector(root.path, recursive=True))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InpaintError(f"{shown}: there is no such folder") from error
    for info in infos:
        if info.type == pafs.FileType.File:
            yield posixpath.relpath(info.path, root.path) if root.path else info.path
