"""Rows of a folder of images, without Ray."""

import hashlib
from pathlib import Path

from PIL import Image

from inpaint.data.rows import Row


def rows_below(folder: str | Path) -> list[Row]:
    found = []
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix in (".png", ".jpg", ".webp"):
            name, (width, height) = path.relative_to(folder).as_posix(), Image.open(path).size
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found.append(Row(id=name, root=str(folder), image=name, width=width, height=height, digest=digest))
    return found
