"""The output folder of a painting run: pictures, comparisons and `painted.jsonl`; what is there need not be redone.

Guaranteed: a picture is named in `painted.jsonl` only when it is whole on disk (written aside, then renamed, then
named), and counts as done only while its bytes still have the hash that is written there.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from inpaint.paint.tasks import COMPARISONS, PaintTask

PAINTED = "painted.jsonl"
QUARANTINE = "quarantine.jsonl"


@dataclass(frozen=True, kw_only=True)
class Painted:
    """One line of `painted.jsonl`."""

    id: str
    prompt: str
    """As the model saw it, with the category's token."""
    seed: int
    output: str
    """Path below the output folder."""
    kept_pixels_changed: int
    """0: it was counted, and a run stops where it is not 0."""
    seconds: float
    """The row's share of its batch's time, reading and encoding included."""
    sha256: str
    """Of the picture's file."""
    key: str
    """The task's key."""


class Results:
    """The results in one output folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines = {line.id: line for line in _read(folder / PAINTED)}

    def keep_done(self, tasks: Sequence[PaintTask]) -> set[str]:
        """Ids of the tasks whose picture is there, whole, and was painted from the same row in the same way.

        All else is dropped from `painted.jsonl`, so that it says no more than is true.
        """
        done = {task.row.id for task in tasks if self._is_done(task)}
        text = "".join(_line(self._lines[task.row.id]) for task in tasks if task.row.id in done)
        write_atomically(self.folder / PAINTED, text.encode())
        return done

    def add(self, painted: Painted, picture: bytes, comparison: bytes) -> None:
        """Writes a picture (PNG) and its comparison, then their line."""
        write_atomically(self.folder / COMPARISONS / painted.output, comparison)
        write_atomically(self.folder / painted.output, picture)
        with (self.folder / PAINTED).open("a", encoding="utf-8") as file:
            file.write(_line(painted))

    def _is_done(self, task: PaintTask) -> bool:
        line = self._lines.get(task.row.id)
        path = self.folder / task.output
        if line is None or line.key != task.key or line.output != task.output:
            return False
        if not (self.folder / COMPARISONS / task.output).is_file() or not path.is_file():
            return False
        return picture_hash(path.read_bytes()) == line.sha256


def picture_hash(picture: bytes) -> str:
    """sha256 of a picture's file, in hex."""
    return hashlib.sha256(picture).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Written aside, then renamed: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_bytes(data)
    os.replace(aside, path)


def _line(painted: Painted) -> str:
    return json.dumps(asdict(painted)) + "\n"


def _read(path: Path) -> list[Painted]:
    """The lines that can be read; a line torn by a crash is a picture to paint again."""
    if not path.is_file():
        return []
    names = {f.name for f in fields(Painted)}
    found = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(text)
        except ValueError:
            continue
        if isinstance(values, Mapping) and values.keys() == names:
            found.append(Painted(**values))
    return found
