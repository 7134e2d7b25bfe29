"""Rows that cannot be used: why, what to do, and when there are too many of them.

Guarantee: a row is either in the manifest or in the quarantine, with one of the fixed phrases of `Reason`.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from inpaint.data.storage import written
from inpaint.errors import BadRow, TooManyBadRows

SHOWN = 20  # rows in the console's table before the rest is only counted


class Reason(StrEnum):
    """Why a row is not used: fixed phrases, so that they can be counted."""

    TOO_FEW_FIELDS = "too few fields"
    TOO_MANY_FIELDS = "too many fields"
    OPEN_QUOTE = "quote not closed"
    NOT_UTF8 = "not UTF-8"
    TOO_LONG = "too long"
    EMPTY_FIELD = "empty field"
    EMPTY_PROMPT = "empty prompt"
    UNKNOWN_CATEGORY = "unknown category"
    UNKNOWN_ADAPTER = "unknown adapter"
    OUTSIDE_ROOT = "path outside the root"
    URL = "URL instead of a path"
    MISSING_FILE = "missing file"
    UNREADABLE = "unreadable file"
    ZERO_BYTES = "zero bytes"
    TOO_MANY_BYTES = "too many bytes"
    NOT_AN_IMAGE = "not an image"
    WRONG_FORMAT = "format not supported"
    TOO_MANY_PIXELS = "too many pixels"
    ANIMATED = "animated"
    TRUNCATED = "truncated or corrupt"
    OTHER_SIZE = "another size than the output"
    EMPTY_HOLE = "empty mask"
    FULL_HOLE = "full mask"
    TRANSPARENT_MASK = "transparent mask"
    NOT_A_COUNT = "not a count"
    OTHER_GRID = "another grid"
    SHARED_CAPTION = "one caption file of several images"
    NOT_TRAINED = "training failed"


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """One row that is not used."""

    row: int
    """Line in the CSV (the header is line 1), or number of the file in a folder, from 1."""
    name: str
    """The row's image as written, empty where there is none."""
    field: str
    """The column at fault."""
    reason: str
    """One of `Reason`."""
    detail: str
    """The value, and what to do about it."""

    @classmethod
    def of(cls, row: int, name: str, error: BadRow) -> "Quarantined":
        return cls(row=row, name=name, field=error.field, reason=str(error.reason), detail=error.detail)


def write(rows: Sequence[Quarantined], path: str | os.PathLike[str]) -> None:
    """Write `quarantine.jsonl` (a path or URL): one JSON object per row; an empty file says that all were used."""
    with written(path) as file:
        file.writelines((json.dumps(asdict(row)) + "\n").encode() for row in rows)


def table(rows: Sequence[Quarantined], total: int) -> str:
    """A short text for the console: the count of each reason, then the first rows."""
    counts = Counter(row.reason for row in rows)
    lines = [f"{len(rows)} of {total} rows are in the quarantine:"]
    lines += [f"  {count:6d} x {reason}" for reason, count in counts.most_common()]
    for row in rows[:SHOWN]:
        lines.append(f"  row {row.row} ({row.name or 'no image'}), {row.field}: {row.reason}: {row.detail}")
    if len(rows) > SHOWN:
        lines.append(f"  and {len(rows) - SHOWN} more")
    return "\n".join(lines)


def check(
    rows: Sequence[Quarantined],
    total: int,
    max_bad_fraction: float,
    written_to: str | None = None,
    source: str = "the source",
) -> None:
    """Raise TooManyBadRows where more than `max_bad_fraction` of `total` rows, or all of them, are unusable."""
    share = len(rows) / total if total else 1.0
    if total and share <= max_bad_fraction and len(rows) < total:
        return
    where = f" (all of them in {written_to})" if written_to else ""
    raise TooManyBadRows(
        f"{len(rows)} of {total} rows cannot be used, {share:.1%}; max_bad_fraction allows {max_bad_fraction:.1%}. "
        f"Repair these rows{where}, or raise max_bad_fraction:\n{table(rows, total)}"
        if total
        else f"{source} has no rows: check its path, and that a CSV has lines below the header, a folder images"
    )
