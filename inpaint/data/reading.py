"""Rows -> arrays and verdicts: what a worker does with one row or one micro-batch. No ray here.

Guarantee of `read_batch`: it depends on (manifest, settings, seed, positions) alone, and a file that cannot be read
becomes a row with weight 0 and the reason, in its place.
"""

import hashlib
from concurrent.futures import Executor
from typing import Any

import numpy as np
import pyarrow as pa

from inpaint.data.decode import Limits, check_hole, load_hole, load_rgb
from inpaint.data.files import read
from inpaint.data.plan import PADDING, Plan
from inpaint.data.quarantine import Reason
from inpaint.data.rows import Manifest, Row, rows_of
from inpaint.data.sample import ReadSettings, RowBytes, make_sample
from inpaint.data.storage import open_root
from inpaint.errors import BadRow


def read_batch(
    manifest: Manifest,
    plan: Plan,
    settings: ReadSettings,
    positions: np.ndarray,
    threads: Executor,
    fetchers: Executor | None = None,
) -> dict[str, np.ndarray]:
    """One micro-batch, its rows read by `threads`, their files by `fetchers` where given: the batch contract of
    docs/architecture.md."""
    size, shape = len(positions), (settings.height, settings.width)
    places = np.flatnonzero(positions != PADDING)
    _, indices = plan.lookup(positions[places])
    rows = dict(zip(places.tolist(), rows_of(manifest.table.take(pa.array(indices))), strict=True))
    batch = {
        "position": positions,
        "image": np.zeros((size, *shape, 3), dtype=np.uint8),
        "hole": np.full((size, *shape), 255, dtype=np.uint8),
        "weight": np.zeros(size, dtype=np.float32),
        **{name: np.full(size, "", dtype=object) for name in ("prompt", "label", "error")},
    }
    if manifest.has_inputs:
        batch["input"] = np.zeros((size, *shape, 3), dtype=np.uint8)
    fetched = {i: fetchers.submit(fetch, row, settings) for i, row in rows.items()} if fetchers else {}

    def fill(i: int) -> None:
        row = rows[i]
        try:
            files = fetched[i].result() if fetched else fetch(row, settings)
            sample = make_sample(row, files, settings, plan.seed, int(positions[i]))
        except BadRow as error:
            batch["error"][i] = f"{row.id}: {error}"
            return
        batch["weight"][i] = row.weight
        for name in sample.keys() & batch.keys():
            batch[name][i] = sample[name]  # type: ignore[literal-required]

    for _ in threads.map(fill, rows):
        pass  # asks for each result, so that an error of ours is raised here
    return batch


def fetch(row: Row, settings: ReadSettings) -> RowBytes:
    """The bytes of those of a row's files that its sample is made of. Raises BadRow."""
    root, most = open_root(row.root), settings.limits.max_bytes
    return RowBytes(
        image=read(root, row.image, "output", most),
        input=read(root, row.input, "input", most) if row.input is not None else None,
        hole=read(root, row.hole, "mask", most) if row.hole is not None and settings.hole.uses_own else None,
    )


def inspect(line: dict[str, Any], limits: Limits) -> tuple[int, int, bytes]:
    """(width, height, digest) of a listed row whose files all decode and fit together. Raises BadRow."""
    root = open_root(line["root"])
    files = [
        None if line[name] is None else read(root, line[name], field, limits.max_bytes)
        for name, field in (("image", "output"), ("input", "input"), ("hole", "mask"))
    ]
    image = load_rgb(files[0] or b"", "output", limits)
    size = image.size
    if files[1] is not None:
        _check_size(load_rgb(files[1], "input", limits).size, size, "input")
    if files[2] is not None:
        hole = load_hole(files[2], "mask", limits)
        _check_size(hole.size, size, "mask")
        check_hole(np.asarray(hole), "mask")
    digest = hashlib.sha256()
    for data in files:
        digest.update(bytes(32) if data is None else hashlib.sha256(data).digest())
    return *size, digest.digest()


def _check_size(size: tuple[int, int], expected: tuple[int, int], field: str) -> None:
    if size != expected:
        text = f"{size[0]} x {size[1]}, the output is {expected[0]} x {expected[1]}: make them the same size"
        raise BadRow(field, Reason.OTHER_SIZE, text)


def inspect_or_quarantine(line: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """`inspect`'s answer and the prompt as one flat line; `reason` is empty where the row is usable."""
    found: dict[str, Any] = {"field": "", "reason": "", "detail": "", "width": 0, "height": 0, "digest": b""}
    try:
        found["width"], found["height"], found["digest"] = inspect(line, limits)
        found["prompt"] = line["prompt"]
        if line["caption"] is not None:
            text = read(open_root(line["root"]), line["caption"], "prompt", limits.max_bytes)
            found["prompt"] = text.decode("utf-8-sig").strip() or line["prompt"]
        if found["prompt"] is None:
            raise BadRow("prompt", Reason.EMPTY_PROMPT, f"write a caption into {line['caption']}")
    except UnicodeDecodeError:
        found.update(field="prompt", reason=str(Reason.UNREADABLE), detail=f"{line['caption']} is not UTF-8")
    except BadRow as error:
        found.update(field=error.field, reason=str(error.reason), detail=error.detail)
    found.setdefault("prompt", "")
    return found
