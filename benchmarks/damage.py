"""What people really give: rows of many kinds of damage and oddity, through reading, training, painting and HTTP.

    python -m benchmarks.damage               # ten minutes on 2 cores; expects `misused` 0 and `unnamed` 0
    python -m benchmarks.damage --rows 200    # two

`benchmarks/damaged.py` makes the rows and says what must become of each. `misused`: used though damaged, refused though
good, or used for something else than it is (another picture, hole, prompt or category; kept pixels that changed; an
answer 5xx). `unnamed`: a row that is neither used nor in the quarantine with its line and the right reason.
`peak_memory_mb` is that of all processes together (proportional set size).
"""

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from starlette.testclient import TestClient

from benchmarks.damaged import CATEGORIES, HEADER, KINDS, Row
from benchmarks.harness import PeakMemory, emit, progress
from inpaint.cluster import connect
from inpaint.data.decode import DEFAULT_LIMITS, PAINT, load_hole, load_rgb, open_image, upright
from inpaint.data.pipeline import read_manifest
from inpaint.data.quarantine import Quarantined, Reason
from inpaint.data.rows import Manifest
from inpaint.data.sources import CsvSource
from inpaint.models.base import BaseInfo, read_base_info
from inpaint.paint.batch import PaintSettings
from inpaint.paint.photos import Photo
from inpaint.paint.request import SamplingSettings
from inpaint.recipes.category_lora import CategoryLora
from inpaint.recipes.painting import PaintPhotos, paint_photos
from inpaint.serve.dialects.paint_http import paint_http
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.service import Painted, PaintOrder, Preview, ServedAdapter
from inpaint.train.checkpoint import CHECKPOINTS, CheckpointStore
from inpaint.train.run import run

HOLE_MAY_DIFFER = 0.02
"""Share of a mask's pixels, where a lossy format holds it."""
OF_PICTURES = {Reason.ZERO_BYTES, Reason.NOT_AN_IMAGE, Reason.WRONG_FORMAT, Reason.TRUNCATED, Reason.ANIMATED}
OF_PICTURES |= {Reason.TOO_MANY_PIXELS}
"""What is wrong with a file itself, and is therefore told by HTTP, too."""


class Judge:
    """Collects what went wrong."""

    def __init__(self) -> None:
        self.misused: list[str] = []
        self.unnamed: list[str] = []

    def expect(self, holds: bool, kind: str, what: str) -> None:
        if not holds:
            self.misused.append(f"{kind}: {what}")

    def refused(self, stage: str, line: int, kind: str, said: Mapping[int, Quarantined]) -> None:
        found = said.get(line)
        if found is None or found.reason != KINDS[kind].reason:
            self.unnamed.append(f"{kind}, {stage}: line {line} is {found.reason if found else 'not named'}")


Rows = dict[int, tuple[str, Row]]
"""Line of the CSV (its first) -> kind and row."""


def make_rows(folder: Path, count: int) -> tuple[Path, Rows]:
    """A CSV with `count` rows, kinds mixed; the file ends with a good row."""
    order = np.random.default_rng(0).permutation(count)
    names, rows, lines = list(KINDS), {}, [HEADER]
    line = 2
    for number in order:
        kind = names[number % len(names)]
        row = Row.of(folder, kind.replace(" ", "-"), int(number))
        KINDS[kind].change(row)
        text = row.write()
        rows[line] = (kind, row)
        lines.append(text)
        line += 1 + text.count(b"\n")
    path = folder / "rows.csv"
    path.write_bytes(b"\r\n".join(lines) + b"\r\n")
    return path, rows


def is_used(kind: str) -> bool:
    return KINDS[kind].reason is None


def judge_reading(judge: Judge, rows: Rows, manifest: Manifest, bad: Sequence[Quarantined], folder: Path) -> None:
    read = {row.image: row for row in manifest.rows()}
    said = {row.row: row for row in bad}
    for line, (kind, row) in rows.items():
        found = read.get(row.image_name)
        if not is_used(kind):
            judge.expect(found is None, kind, "used by reading")
            judge.refused("reading", line, kind, said)
            continue
        why = said[line].detail if line in said else "not there"
        judge.expect(found is not None, kind, f"refused by reading: {why}")
        if found is None:
            continue
        judge.expect((found.prompt, found.category) == (row.prompt, row.category), kind, "prompt or category differ")
        image = np.asarray(load_rgb((folder / row.image_name).read_bytes(), "output", DEFAULT_LIMITS)).astype(int)
        shows = np.asarray((row.expected or row.image).convert("RGB")).astype(int)
        distance = np.abs(image - shows).mean() if image.shape == shows.shape else 255.0
        judge.expect(distance <= row.close, kind, f"shows something else: {distance:.1f} levels")
        hole = np.asarray(load_hole((folder / row.mask_name).read_bytes(), "mask", DEFAULT_LIMITS)) >= PAINT
        differs = float((hole != (np.asarray(row.mask) >= PAINT)).mean())
        judge.expect(differs <= HOLE_MAY_DIFFER, kind, f"another hole: {differs:.1%}")
    judge.expect(len(manifest) + len(bad) == len(rows), "all", f"{len(manifest)} + {len(bad)} of {len(rows)} rows")


def judge_training(judge: Judge, data: Path, output: Path, good: int) -> None:
    recipe = CategoryLora.of_preset("toy", data=str(data), output=str(output))
    train = replace(recipe.train, epochs=1.0, workers=1)
    run(replace(recipe, categories=CATEGORIES, max_bad_fraction=1.0, card_samples=0, train=train))
    ended = CheckpointStore(f"{output}/{CHECKPOINTS}").progress()
    expected = -(-good // train.global_batch) * train.global_batch
    judge.expect(ended is not None and ended.samples == expected, "all", f"trained on {ended and ended.samples}")
    rows = len(Manifest.load(output / "manifest.parquet"))
    judge.expect(rows == good, "all", f"trained on {rows} rows of {good}")


def judge_painting(judge: Judge, data: Path, rows: Rows, output: Path, folder: Path) -> None:
    settings = PaintSettings(base="toy", sampling=SamplingSettings(steps=1))
    paint_photos(PaintPhotos(data=str(data), output=str(output), settings=settings))
    lines = [json.loads(line) for line in (output / "painted.jsonl").read_text().splitlines()]
    painted = {line["id"]: line for line in lines}
    told = [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]
    said = {one["row"]: Quarantined(**one) for one in told}
    # Any category may be painted, and none.
    free = {Reason.UNKNOWN_CATEGORY, Reason.EMPTY_FIELD}
    for line, (kind, row) in rows.items():
        done = painted.get(row.image_name)
        if not is_used(kind):
            if KINDS[kind].reason in free and done is not None:
                continue
            judge.expect(done is None, kind, "painted")
            judge.refused("painting", line, kind, said)
            continue
        judge.expect(done is not None, kind, f"not painted: {said[line].detail if line in said else 'not there'}")
        if done is None:
            continue
        judge.expect(done["kept_pixels_changed"] == 0, kind, "kept pixels changed")
        photo = _photo(folder / row.image_name)
        result = _photo(output / done["output"])
        kept = np.asarray(load_hole((folder / row.mask_name).read_bytes(), "mask", DEFAULT_LIMITS)) < PAINT
        same = result.own.shape[:2] == photo.own.shape[:2] and np.array_equal(
            result.own[kept][:, :3], photo.own[kept][:, :3]
        )
        judge.expect(same and result.profile == photo.profile, kind, "the painted file's kept numbers differ")


def _photo(path: Path) -> Photo:
    return Photo.of(upright(open_image(path.read_bytes(), "image", DEFAULT_LIMITS), "image"))


class BlueService:
    """A service that fills holes at once."""

    def __init__(self) -> None:
        self.base: BaseInfo = read_base_info("toy")

    def catalogue(self) -> Mapping[str, ServedAdapter]:
        return {}

    def refused(self) -> Mapping[str, str]:
        return {}

    async def healthy(self) -> bool:
        return True

    async def paint(self, orders: Sequence[PaintOrder]) -> AsyncGenerator[tuple[int, Preview | Painted], None]:
        for number, order in enumerate(orders):
            image = order.request.image.copy()
            image[order.request.hole] = (0, 0, 255)
            yield number, Painted(image=image, kept_pixels_changed=0, steps=1, batch_rows=1, queue_s=0, paint_s=0)


def judge_http(judge: Judge, rows: Rows, folder: Path) -> int:
    """How many requests were sent."""
    sent = 0
    # Sides of reading's own photos are taken, whatever their aspect.
    settings = HttpSettings(max_aspect=64)
    with TestClient(paint_http(BlueService(), settings), raise_server_exceptions=False) as client:
        for kind, row in rows.values():
            expected = KINDS[kind]
            if not (is_used(kind) or expected.reason in OF_PICTURES):
                continue
            files = {"image": (folder / row.image_name).read_bytes(), "mask": (folder / row.mask_name).read_bytes()}
            prompt = row.prompt[:1000]
            answer = client.post("/paint", files=files, data={"prompt": prompt, "seed": "1"})
            sent += 1
            if is_used(kind):
                judge.expect(answer.status_code == 200, kind, f"HTTP {answer.status_code} {answer.text[:200]}")
            else:
                judge.expect(400 <= answer.status_code < 500, kind, f"HTTP {answer.status_code}")
                if answer.status_code < 500 and str(expected.reason) not in answer.text:
                    judge.unnamed.append(f"{kind}, HTTP: {answer.text[:200]}")
    return sent


@contextmanager
def stage(name: str, judge: Judge) -> Iterator[None]:
    before = (len(judge.misused), len(judge.unnamed))
    progress(f"{name} ...")
    yield
    found = [*Counter(judge.misused[before[0] :]).items(), *Counter(judge.unnamed[before[1] :]).items()]
    for what, times in found[:40]:
        progress(f"  {times} x {what}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    options = parser.parse_args()
    judge, memory, figures = Judge(), PeakMemory(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as temporary, memory:
        folder = Path(temporary) / "rows"
        folder.mkdir()
        data, rows = make_rows(folder, options.rows)
        good = sum(is_used(kind) for kind, _ in rows.values())
        connect(num_cpus=2)
        with stage("reading", judge):
            source = CsvSource(path=data, categories=CATEGORIES, category_required=True)
            manifest, bad = read_manifest(source, max_bad_fraction=1.0)
            judge_reading(judge, rows, manifest, bad, folder)
        with stage("training", judge):
            judge_training(judge, data, Path(temporary) / "run", good)
        with stage("painting", judge):
            judge_painting(judge, data, rows, Path(temporary) / "painted", folder)
        with stage("HTTP", judge):
            figures["requests"] = judge_http(judge, rows, folder)
    figures |= {"kinds": len({kind for kind, _ in rows.values()}), "rows": len(rows), "good": good}
    figures |= {"misused": len(judge.misused), "unnamed": len(judge.unnamed), "peak_memory_mb": memory.peak / 2**20}
    emit("damage", figures, misused=dict(Counter(judge.misused)), unnamed=dict(Counter(judge.unnamed)))


if __name__ == "__main__":
    main()
