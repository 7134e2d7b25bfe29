"""The records of a CSV, for which what is damaged costs its own lines and no others.

A record whose quote is not closed would swallow the lines behind it, up to the next quote or the end of the file. It is
known by a line in it that is a row by itself, or by the file's end: then it is its first line alone, and the others are
read for themselves. Lines are numbered as an editor counts them, the first is 1.
"""

import csv
import io
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import BinaryIO

from inpaint.data.quarantine import Reason
from inpaint.errors import BadRow

_LONE = re.compile("[\udc80-\udcff]")

Record = tuple[int, list[str] | BadRow]
"""The number of its first line; and its cells, or why it has none that can be used."""


class Records(Iterator[Record]):
    """The records of an open file."""

    def __init__(self, file: BinaryIO) -> None:
        self._lines = _Lines(file)
        self._cells = csv.reader(self._lines)
        self.is_row: Callable[[str], bool] = lambda line: False
        """Tells a row from any other line; to be set once the header is known."""
        self.of_several_lines = 0
        """Records so far that have more lines than one."""
        self.first_of_several = 0
        """Where the first of those begins."""
        self.further_lines = 0
        """Lines of them beyond each one's first."""

    def __next__(self) -> Record:
        lines = self._lines
        lines.begin_record(self.is_row)
        first = lines.number + 1
        try:
            cells = next(self._cells)
        except csv.Error as error:
            # The other kind, a line end within a line, does not come with lines that are cut at each.
            if lines.number == first:
                return first, BadRow("row", Reason.TOO_LONG, f"{error} of characters: shorten the cell")
            lines.has_stopped = True
        if lines.has_stopped:
            detail = f"a quote is not closed before line {lines.number + 1}, which is no part of the cell: close it"
            lines.give_back()
            return first, BadRow("row", Reason.OPEN_QUOTE, detail)
        if lines.is_damaged:
            return first, BadRow("row", Reason.NOT_UTF8, "the line is not UTF-8: save the file as UTF-8")
        if lines.number > first:
            self.first_of_several = self.first_of_several or first
            self.of_several_lines += 1
            self.further_lines += lines.number - first
        return first, cells

    def take(self, count: int) -> list[Record]:
        """The next `count`, or what is left."""
        lines = self._lines.look(count)
        text = "".join(lines)
        if '"' not in text and is_utf8(text):
            # Each line is a record, which takes half the time. Where a cell is too long, they are read one by one.
            with suppress(csv.Error):
                found: list[Record] = list(enumerate(csv.reader(lines), self._lines.number + 1))
                self._lines.number += len(lines)
                lines.clear()
                return found
        return list(islice(self, count))


class _Lines(Iterator[str]):
    """What a csv reader is fed."""

    def __init__(self, file: BinaryIO) -> None:
        # Bytes that are no UTF-8 come as lone surrogates, which no text has.
        self._file = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        self._ahead: deque[str] = deque()
        self.number = 0
        """Of the last line that was fed."""

    def begin_record(self, is_row: Callable[[str], bool]) -> None:
        self._is_row, self._taken, self.has_stopped, self.is_damaged = is_row, list[str](), False, False

    def give_back(self) -> None:
        """All lines of the record but its first."""
        self._ahead.extendleft(reversed(self._taken[1:]))
        self.number -= len(self._taken) - 1

    def look(self, count: int) -> deque[str]:
        """The next lines; who takes some out counts them."""
        self._ahead.extend(islice(self._file, count - len(self._ahead)))
        return self._ahead

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else next(self._file, None)
        if self._taken and (line is None or self._is_row(line)):
            # The record ends here; the reader asks again for the next one.
            self._ahead.extendleft([] if line is None else [line])
            self.has_stopped = True
            raise StopIteration
        if line is None:
            raise StopIteration
        self._taken.append(line)
        self.number += 1
        self.is_damaged = self.is_damaged or not is_utf8(line)
        return line


def is_utf8(text: str) -> bool:
    """Whether it was; what was not has lone surrogates in place of bytes (PEP 383)."""
    return text.isascii() or _LONE.search(text) is None
