"""Rows that were decoded once for several readings: of each its crops, resized, before they are mirrored, have a hole
and a text. A sample that is made of them is the one that is made of the row's files, to the bit.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from inpaint.data.bank import crop_randomness
from inpaint.data.plan import Plan
from inpaint.data.rows import Manifest, Row
from inpaint.data.sample import Crop, ReadSettings, fetch, view_of
from inpaint.errors import BadRow

PIECE = 1_000_000
"""Positions that are looked up at a time."""
FETCHED_AHEAD = 16
"""Crops whose files are held at a time."""


@dataclass(frozen=True)
class DecodedRows:
    """Where a row's crops lie among the pieces."""

    places: np.ndarray
    """int64[rows, crops]: the number of an entry; -1 where there is none."""
    per_piece: int
    """Entries."""
    pieces: Sequence[Mapping[str, Any]]
    """As `decode` made them."""

    def find(self, row: int, crop: int) -> Mapping[str, Any] | None:
        """What `view_of` returns; None where it was not decoded. Raises BadRow where it could not be."""
        number = int(self.places[row, crop]) if crop < self.places.shape[1] else -1
        if number < 0:
            return None
        piece, place = self.pieces[number // self.per_piece], number % self.per_piece
        if (error := piece["error"][place]) is not None:
            raise error
        found = {name: column[place] for name, column in piece.items() if name != "error"}
        return {name: values for name, values in found.items() if values is not None}


def kind_of(read: ReadSettings) -> tuple[object, ...]:
    """What crops depend on beside rows: those of settings that agree in it are the same."""
    return read.height, read.width, read.shapes, read.crop, read.reads_mask, _is_endless(read)


def _is_endless(read: ReadSettings) -> bool:
    return read.crop is Crop.RANDOM and read.bank is None


def crops_shown(rows: Manifest, read: ReadSettings, plan: Plan, span: range) -> np.ndarray | None:
    """Which crops of which rows samples at positions show, bool[rows, crops]; None where each has one of its own."""
    if _is_endless(read):
        return None
    shown = np.zeros((len(rows), read.views if read.crop is Crop.RANDOM else 1), dtype=bool)
    for start in span[::PIECE]:
        positions = np.arange(start, min(span.stop, start + PIECE))
        _, indices = plan.lookup(positions)
        shown[indices, read.crops(plan.seed, positions)] = True
    return shown


def bytes_each(rows: Manifest, read: ReadSettings) -> int:
    """Of an entry, at most."""
    return read.height * read.width * (3 * (1 + rows.has_inputs) + read.reads_mask)


def decode(rows: Manifest, read: ReadSettings, entries: np.ndarray, fetchers: Executor | None = None) -> dict[str, Any]:
    """A piece: what `view_of` returns of each, in columns, and why there is none, where there is none.

    Args:
        entries: (row, crop), int64[N, 2].
        fetchers: read the rows' files, where these are far away.
    """
    buckets = rows.buckets
    views: list[Mapping[str, Any] | None] = []
    errors: list[BadRow | None] = []

    def fetched(index: int) -> tuple[Row, dict[str, bytes] | BadRow]:
        row = rows.row(index)
        try:
            return row, fetch(row, reads_mask=read.reads_mask)
        except BadRow as error:
            return row, error

    for start in range(0, len(entries), FETCHED_AHEAD):
        indices, crops = entries[start : start + FETCHED_AHEAD].T.tolist()
        of_each = (fetchers.map if fetchers else map)(fetched, indices)
        for index, (row, files), crop in zip(indices, of_each, crops, strict=True):
            try:
                if isinstance(files, BadRow):
                    raise files
                seen = read.of_bucket(None if buckets is None else int(buckets[index]))
                views.append(view_of(row, files, seen, crop_randomness(row, crop)))
                errors.append(None)
            except BadRow as error:
                views.append(None)
                errors.append(error)
    columns: dict[str, Any] = {"error": errors}
    for name in sorted(set().union(*filter(None, views))):
        columns[name] = [None if view is None else view.get(name) for view in views]
    return {name: _column(values) for name, values in columns.items()}


def _column(values: list[Any]) -> Any:
    """As one array, where all are arrays of a shape: then readers share its memory."""
    alike = {value.shape if isinstance(value, np.ndarray) else None for value in values}
    return np.stack(values) if len(alike) == 1 and None not in alike else values
