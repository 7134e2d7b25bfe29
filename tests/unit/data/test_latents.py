"""Latents in files: they come back as they were written, damage is seen, a killed writer leaves nothing, the oldest
go; and which entries a run needs of its rows."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from inpaint.data.bank import WHOLE, Bank
from inpaint.data.holes import RandomShapes, Sometimes, WholeImage
from inpaint.data.latent_files import DATA, INDEX, USED, Stored, entry, pack, plane_of, trim, write_entries
from inpaint.data.latents import LatentSpec, StoredLatents, Variants
from inpaint.data.plan import Plan
from inpaint.data.rows import Manifest, Row
from inpaint.data.sample import ReadSettings, read_batch
from inpaint.errors import BadRow

SPEC = LatentSpec(encoder="a", channels=8, downsample=8, dtype="float32", sees_masked=True)
READ = ReadSettings(height=16, width=16, hole=Sometimes(RandomShapes(), 0.3), bank=Bank(holes=3), caption_dropout=0.0)
ROWS = Manifest.of(
    [
        Row(id=str(n), root="r", image="i", width=40 + n, height=30, digest=f"{n + 1:02x}" * 32, prompt=f"p{n}")
        for n in range(5)
    ]
)
PLAN = Plan.of(ROWS, 3)


def keys(*numbers: int) -> pa.Array:
    return pa.array([bytes([n]) * 32 for n in numbers], pa.binary(32))


def written(folder: Path, *numbers: int) -> None:
    """A file of entries, the moments of each its own number."""
    entries = [
        entry(bytes([n]) * 32, np.full((8, 2, 2), n, np.float32), pack(np.full((16, 16), n, np.uint8)), b"", (n, 2))
        for n in numbers
    ]
    write_entries(folder, entries)


def test_entries_come_back_as_they_were_written(tmp_path: Path) -> None:
    written(tmp_path, 1, 2, 3)
    written(tmp_path, 4)
    stored = Stored.at(tmp_path)
    for number, address in zip((4, 2), stored.find(keys(4, 2)), strict=True):
        found = stored.read(address)
        assert (np.frombuffer(found["moments"], np.float32) == number).all()
        assert (plane_of(found["hole"], (16, 16)) == number).all()
        assert (found["area"], found["crop_top_left"]) == (None, [number, 2])
    assert stored.find(keys(9))["file"].tolist() == [-1]
    (of_one,) = (path for path in tmp_path.glob(f"*{DATA}") if path.stat().st_size < 2000)
    with pa.ipc.open_stream(of_one) as reader:
        assert reader.read_all()["key"].to_pylist() == [bytes([4]) * 32], "any Arrow reader reads it"
    assert len(Stored.at(tmp_path / "nothing").keys) == 0


def test_damage_is_seen_and_what_is_damaged_is_forgotten(tmp_path: Path) -> None:
    written(tmp_path, 1, 2, 3)
    stored = Stored.at(tmp_path)
    addresses = stored.find(keys(1, 2, 3))
    (file,) = tmp_path.glob(f"*{DATA}")
    data = bytearray(file.read_bytes())
    data[int(addresses[1]["offset"]) + int(addresses[1]["length"]) // 2] ^= 1
    file.write_bytes(data)
    assert stored.damaged(addresses).tolist() == [False, True, False]
    with pytest.raises(BadRow, match="damaged: run it again with --resume"):
        stored.read(addresses[1])
    stored.forget(keys(2))
    assert (Stored.at(tmp_path).find(keys(1, 2, 3))["file"] >= 0).tolist() == [True, False, True]
    file.unlink()
    assert len(Stored.at(tmp_path).keys) == 0, "an index without its file is none"
    (index,) = tmp_path.glob(f"*{INDEX}")
    file.write_bytes(data)
    index.write_bytes(index.read_bytes()[:50])
    with pytest.warns(UserWarning, match="is damaged"):
        assert len(Stored.at(tmp_path).keys) == 0


def test_what_was_not_used_for_longest_goes_above_a_limit(tmp_path: Path) -> None:
    for number in range(4):
        written(tmp_path / "space", number)
    files = {int(Stored.at(tmp_path / "space").find(keys(n))["file"][0]): n for n in range(4)}
    stored, now = Stored.at(tmp_path / "space"), time.time()
    for number, name in enumerate(stored.files):
        for path in (tmp_path / "space").glob(f"{name}*"):
            os.utime(path, (now - 10_000 * (number + 1),) * 2)
    stored.note_use([3])
    size = sum(path.stat().st_size for path in (tmp_path / "space").iterdir())
    removed = trim(tmp_path, size - 1, {f"space/{stored.files[2]}"})
    assert removed == [f"space/{stored.files[1]}"], "of all, the third is needed, and the fourth was used now"
    left = {n for n in range(4) if Stored.at(tmp_path / "space").find(keys(n))["file"][0] >= 0}
    assert left == set(files.values()) - {files[1]}
    assert trim(tmp_path, size, set()) == [] and trim(tmp_path / "none", 0, set()) == []
    assert len(list((tmp_path / "space").glob(f"*{USED}"))) == 1


def test_a_run_needs_what_its_positions_show_and_no_more() -> None:
    few, many = (Variants.of(ROWS, READ, SPEC, PLAN, range(total)) for total in (5, 2000))
    assert few.used.shape == (5, 4) and few.used[:, 0].all() and few.used.sum() <= 10
    assert many.used.all() and many.whole
    places, found = many.keys(ROWS)
    assert len(set(found.to_pylist())) == len(places) == 20
    blind = Variants.of(ROWS, READ, LatentSpec(**{**vars(SPEC), "sees_masked": False}), PLAN, range(2000))
    assert not blind.whole, "who sees no masked image needs no grey one"
    views, holes = READ.variants(3, np.arange(5))
    _, rows = PLAN.lookup(np.arange(5))
    for row, view, hole in zip(rows, views, holes, strict=True):
        assert hole == WHOLE or few.used[row, view * 4 + 1 + hole]


def test_keys_say_what_an_entry_depends_on_and_nothing_else() -> None:
    def of(read: ReadSettings = READ, spec: LatentSpec = SPEC, seed: int = 3) -> list[set[bytes]]:
        places, found = Variants.of(ROWS, read, spec, Plan.of(ROWS, seed), range(2000)).keys(ROWS)
        by_kind = (
            [key for place, key in zip(places, found.to_pylist(), strict=True) if bool(place[1]) == k] for k in (0, 1)
        )
        return [set(some) for some in by_kind]

    def changed(**settings: object) -> ReadSettings:
        return ReadSettings(**{**vars(READ), **settings})

    images, holes = of()
    assert of(seed=4) == [images, holes] == of(changed(caption_dropout=0.5, prompt_format="x"))
    other_holes = of(changed(hole=RandomShapes(most_shapes=1)))
    assert other_holes[0] == images and not other_holes[1] & holes
    assert of(changed(hole=Sometimes(RandomShapes(), 0.9)))[1] == holes, "how often the whole hole comes is no matter"
    more = of(changed(bank=Bank(holes=5)))
    assert more[0] == images and more[1] > holes
    for read in (changed(height=32), changed(flip_probability=0.5), changed(loss_in_mask=True)):
        assert not of(read)[0] & images and not of(read)[1] & holes
    assert not of(spec=LatentSpec(**{**vars(SPEC), "encoder": "b"}))[0] & images


def test_a_batch_of_latents_is_one_of_pixels_but_for_them(tmp_path: Path) -> None:
    variants = Variants.of(ROWS, READ, SPEC, PLAN, range(100))
    places, found = variants.keys(ROWS)
    entries = [
        entry(
            key,
            np.full(SPEC.shape((16, 16)), 10 * row + which, np.float32),
            pack(np.full((16, 16), 128 + which, np.uint8)),
            b"",
            (row, 1),
        )
        for (row, which), key in zip(places.tolist(), found.to_pylist(), strict=True)
        if (row, which) != (4, 0)
    ]
    grey = entry(variants.whole_key(None), np.full(SPEC.shape((16, 16)), -1, np.float32), b"", b"", (0, 0))
    write_entries(SPEC.folder(str(tmp_path)), [*entries, grey])
    stored = StoredLatents.find(variants, ROWS, str(tmp_path))
    positions = np.array([*range(20), -1])
    with ThreadPoolExecutor(2) as threads:
        batch = read_batch(ROWS, PLAN, READ, positions, threads, threads, stored)
    assert batch.keys() >= {"latents", "masked_latents", "hole", "prompt"} and "image" not in batch
    _, rows = PLAN.lookup(positions[:-1])
    views, holes = READ.variants(3, positions[:-1])
    assert (holes == WHOLE).any() and not views.any()
    for place, (row, hole) in enumerate(zip(rows.tolist(), holes.tolist(), strict=True)):
        if row == 4:
            assert "could not be encoded" in batch["error"][place] and batch["weight"][place] == 0
            continue
        assert batch["error"][place] == "" and batch["prompt"][place] == f"p{row}"
        assert (batch["latents"][place] == 10 * row).all()
        assert (batch["masked_latents"][place] == (-1 if hole == WHOLE else 10 * row + 1 + hole)).all()
        assert (batch["hole"][place] == (255 if hole == WHOLE else 129 + hole)).all()
        assert batch["crop_top_left"][place].tolist() == [row, 1] and batch["original_size"][place].tolist() == [
            30,
            40 + row,
        ]
    assert (batch["weight"][-1], batch["latents"][-1].max()) == (0, 0)


def test_a_whole_hole_that_nobody_sees_through_needs_no_entry(tmp_path: Path) -> None:
    read = ReadSettings(**{**vars(READ), "hole": WholeImage()})
    variants = Variants.of(ROWS, read, LatentSpec(**{**vars(SPEC), "sees_masked": False}), PLAN, range(50))
    assert variants.used[:, 0].all() and not variants.used[:, 1:].any() and not variants.whole
