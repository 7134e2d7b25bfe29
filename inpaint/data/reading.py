"""Rows -> arrays and verdicts: what a worker does with one row or one micro-batch. No ray here.

Guarantee of `read_batch`: it depends on (manifest, settings, seed, positions) alone, and a file that cannot be read
becomes a row with weight 0 and the reason, in its place.
"""

import hashlib
import warnings
from collections import Counter
from concurrent.futures import Executor
from typing import Any

import numpy as np
import pyarrow as pa

from inpaint.data.decode import Limits, check_hole, load_hole, load_rgb
from inpaint.data.manifest import Row, rows_of
from inpaint.data.plan import Plan
from inpaint.data.quarantine import Reason
from inpaint.data.sample import ReadSettings, RowBytes, make_sample
from inpaint.data.sources import Candidate
from inpaint.data.storage import Root, read
from inpaint.errors import BadRow

Found = tuple[int, int, str]
"""What the files of a usable row told: width, height, digest."""


def read_batch(
    table: pa.Table,
    root: Root,
    plan: Plan,
    settings: ReadSettings,
    positions: np.ndarray,
    with_input: bool,
    threads: Executor,
    fetchers: Executor | None = None,
) -> dict[str, np.ndarray]:
    """One micro-batch, its rows read by `threads`, their files by `fetchers` where given: the batch contract of
    docs/architecture.md."""
    size, side = len(positions), settings.resolution
    _, indices = plan.lookup(positions)
    rows = rows_of(table.take(pa.array(indices)))
    image = np.empty((size, side, side, 3), dtype=np.uint8)
    seen = np.empty((size, side, side, 3), dtype=np.uint8) if with_input else None
    hole = np.empty((size, side, side), dtype=np.uint8)
    prompts, errors = [""] * size, [""] * size
    weight = np.zeros(size, dtype=np.float32)

    fetched = [fetchers.submit(fetch, row, root, settings.limits) for row in rows] if fetchers else []

    def fill(i: int) -> None:
        row = rows[i]
        try:
            files = fetched[i].result() if fetched else fetch(row, root, settings.limits)
            sample = make_sample(row, files, settings, plan.seed, int(positions[i]))
        except BadRow as error:
            errors[i] = f"{row.id}: {error}"
            image[i], hole[i] = 0, 255
            if seen is not None:
                seen[i] = 0
            return
        image[i], hole[i], prompts[i], weight[i] = sample["image"], sample["hole"], sample["prompt"], row.weight
        if seen is not None:
            seen[i] = sample["input"]

    for _ in threads.map(fill, range(size)):
        pass  # asks for each result, so that an error of ours is raised here
    batch = {"position": positions, "image": image, "hole": hole, "weight": weight}
    if seen is not None:
        batch["input"] = seen
    return {**batch, "prompt": np.array(prompts, dtype=object), "error": np.array(errors, dtype=object)}


def fetch(row: Row | Candidate, root: Root, limits: Limits) -> RowBytes:
    """The bytes of a row's files. Raises BadRow."""
    return RowBytes(
        image=read(root, row.image, "output", limits.max_bytes),
        input=read(root, row.input, "input", limits.max_bytes) if row.input is not None else None,
        hole=read(root, row.hole, "mask", limits.max_bytes) if row.hole is not None else None,
    )


def inspect(candidate: Candidate, root: Root, limits: Limits) -> tuple[int, int, str]:
    """(width, height, digest) of a candidate whose files all decode and fit together. Raises BadRow."""
    files = fetch(candidate, root, limits)
    image = load_rgb(files.image, "output", limits)
    size = image.size
    if files.input is not None:
        _check_size(load_rgb(files.input, "input", limits).size, size, "input")
    if files.hole is not None:
        hole = load_hole(files.hole, "mask", limits)
        _check_size(hole.size, size, "mask")
        check_hole(np.asarray(hole), "mask")
    digest = hashlib.sha256()
    for data in (files.image, files.input, files.hole):
        # A length before each part, so that no two sets of files run together into the same bytes.
        digest.update(b"-" if data is None else f"{len(data)}:".encode() + data)
    return *size, digest.hexdigest()


def _check_size(size: tuple[int, int], expected: tuple[int, int], field: str) -> None:
    if size != expected:
        text = f"{size[0]} x {size[1]}, the output is {expected[0]} x {expected[1]}: make them the same size"
        raise BadRow(field, Reason.OTHER_SIZE, text)


def inspect_or_quarantine(candidate: Candidate, root: Root, limits: Limits) -> dict[str, Any]:
    """`inspect`'s answer as one flat line for Ray Data; `reason` is empty where the row is usable."""
    line: dict[str, Any] = {"row": candidate.row, "name": candidate.image, "field": "", "reason": "", "detail": ""}
    try:
        width, height, digest = inspect(candidate, root, limits)
    except BadRow as error:
        line.update(field=error.field, reason=str(error.reason), detail=error.detail)
        return {**line, "width": 0, "height": 0, "digest": ""}
    return {**line, "width": width, "height": height, "digest": digest}


def rows_found(found: list[tuple[Candidate, Found]]) -> tuple[Row, ...]:
    """Candidates and what their files told -> rows with stable ids. Warns of rows that repeat an earlier one."""
    uses: Counter[str] = Counter()
    whole: Counter[tuple[object, ...]] = Counter()
    rows = []
    for c, (width, height, digest) in found:
        uses[c.image] += 1
        whole[c.image, c.input, c.hole, c.prompt, c.category] += 1
        name = c.image if uses[c.image] == 1 else f"{c.image}#{uses[c.image]}"
        rows.append(
            Row(
                id=name,
                image=c.image,
                input=c.input,
                hole=c.hole,
                prompt=c.prompt,
                category=c.category,
                width=width,
                height=height,
                digest=digest,
            )
        )
    doubled = sum(count - 1 for count in whole.values())
    if doubled:
        first = next(str(key[0]) for key, count in whole.items() if count > 1)
        warnings.warn(f"{doubled} rows repeat an earlier row (the first: {first}); they are used", stacklevel=3)
    return tuple(rows)
