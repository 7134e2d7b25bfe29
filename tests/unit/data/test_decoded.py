"""Rows that are decoded once show what their files show, to the bit, and nobody opens those again."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inpaint.data import sample
from inpaint.data.bank import Bank
from inpaint.data.decoded import DecodedRows, crops_shown, decode, kind_of
from inpaint.data.holes import Grown, OwnMask, RandomShapes, Sometimes
from inpaint.data.plan import Plan
from inpaint.data.rows import Manifest, Row
from inpaint.data.sample import Crop, ReadSettings, read_batch
from tests.unit.data import images

COUNT = 24
PER_PIECE = 3
PLAIN = ReadSettings(height=16, width=24, hole=Sometimes(RandomShapes(), 0.2), flip_probability=0.5)
OWN = replace(PLAIN, hole=Grown(OwnMask()), bank=Bank(holes=2), crop=Crop.RANDOM)


def written(folder: Path, *, masks: bool, inputs: bool) -> Manifest:
    """Rows of several shapes; the last one's file is gone, and with masks the first one has none."""
    rows = []
    for i in range(4):
        told = {"width": 40, "height": 30 + 4 * i, "digest": f"{i:064x}", "prompt": f"thing {i}"}
        if i < 3:
            (folder / f"{i}.png").write_bytes(images.encoded(images.picture(40, 30 + 4 * i)))
        if masks and i:
            (folder / f"m{i}.png").write_bytes(images.encoded(images.mask(40, 30 + 4 * i)))
            told["hole"] = f"m{i}.png"
        if inputs:
            (folder / f"i{i}.png").write_bytes(images.encoded(images.picture(40, 30 + 4 * i).rotate(180)))
            told["input"] = f"i{i}.png"
        rows.append(Row(id=f"{i}", root=str(folder), image=f"{i}.png", **told))
    return Manifest.of(rows)


def decoded(rows: Manifest, read: ReadSettings, plan: Plan) -> DecodedRows:
    shown = crops_shown(rows, read, plan, range(COUNT))
    assert shown is not None
    entries, places = np.argwhere(shown), np.full(shown.shape, -1)
    places[shown] = np.arange(len(entries))
    starts = range(0, len(entries), PER_PIECE)
    with ThreadPoolExecutor(3) as fetchers:
        some = [(entries[start : start + PER_PIECE], fetchers if start else None) for start in starts]
        pieces = [decode(rows, read, *one) for one in some]
    return DecodedRows(places, PER_PIECE, pieces)


@pytest.mark.parametrize(
    ("read", "masks", "inputs"),
    [
        pytest.param(PLAIN, False, False, id="as a ddpm reads"),
        pytest.param(replace(PLAIN, bank=Bank(holes=2)), False, True, id="a bank and inputs"),
        pytest.param(replace(OWN, hole=Sometimes(RandomShapes())), False, False, id="random crops of a bank"),
        pytest.param(replace(PLAIN, loss_in_mask=True), True, False, id="a loss in masks, where there is one"),
        pytest.param(replace(OWN, loss_in_mask=True), True, True, id="own masks"),
        pytest.param(replace(PLAIN, shapes=((24, 16), (16, 24))), False, True, id="two shapes"),
    ],
)
def test_samples_are_those_of_the_files(read: ReadSettings, masks: bool, inputs: bool, tmp_path, monkeypatch) -> None:
    rows = written(tmp_path, masks=masks, inputs=inputs)
    if read.hole.uses_own:
        rows = rows.select(np.arange(1, 4))
    if read.shapes:
        rows = rows.in_buckets(np.arange(len(rows)) % 2)
    plan, batches = Plan.of(rows, 5, 4), np.arange(COUNT).reshape(-1, 4)
    with ThreadPoolExecutor(2) as threads:
        expected = [read_batch(rows, plan, read, positions, threads) for positions in batches]
        known = decoded(rows, read, plan)
        monkeypatch.setattr(sample, "fetch", None)
        found = [read_batch(rows, plan, read, positions, threads, decoded=known) for positions in batches]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, values in other.items():
            assert values.dtype == one[name].dtype and np.array_equal(values, one[name]), name
    assert 0 < sum(bool(error) for batch in found for error in batch["error"]) < COUNT, "the row whose file is gone"
    shown = [batch["image"][batch["weight"] > 0] for batch in found]
    assert {images.shape[1:3] for images in shown} == set(read.shapes or [(16, 24)])
    assert len({image.tobytes() for images in shown for image in images}) >= 4, "crops or mirrorings differ"


def test_what_was_not_decoded_is_read_from_its_file(tmp_path: Path) -> None:
    rows = written(tmp_path, masks=False, inputs=False)
    plan, fewer = Plan.of(rows, 5, 4), replace(PLAIN, crop=Crop.RANDOM, bank=Bank(views=1))
    more = replace(fewer, bank=Bank(views=3))
    with ThreadPoolExecutor(1) as threads:
        known, positions = decoded(rows, fewer, plan), np.arange(COUNT)
        expected = read_batch(rows, plan, more, positions, threads)
        found = read_batch(rows, plan, more, positions, threads, decoded=known)
    assert all((values == found[name]).all() for name, values in expected.items())


def test_crops_without_end_are_not_kept_and_others_are_no_others(tmp_path: Path) -> None:
    rows = written(tmp_path, masks=False, inputs=False)
    endless = replace(PLAIN, crop=Crop.RANDOM)
    assert crops_shown(rows, endless, Plan.of(rows, 5, 4), range(COUNT)) is None
    others = [replace(PLAIN, height=24), replace(PLAIN, loss_in_mask=True), endless, replace(endless, bank=Bank())]
    assert len({kind_of(read) for read in (PLAIN, *others)}) == 5
    assert kind_of(replace(PLAIN, flip_probability=0.0, caption_dropout=0.9, bank=Bank())) == kind_of(PLAIN)
