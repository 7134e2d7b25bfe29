"""Rows -> arrays: what a worker does with one micro-batch. No ray here.

Guarantee of `read_batch`: it depends on (manifest, settings, seed, positions) alone, and a file that cannot be read
becomes a row with weight 0 and the reason, in its place.
"""

from concurrent.futures import Executor

import numpy as np
import pyarrow as pa

from inpaint.data.files import read
from inpaint.data.plan import PADDING, Plan
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
