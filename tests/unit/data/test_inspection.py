"""Inspecting without Ray: each file opened once, what was seen remembered, rows told apart, cut holes named."""

import hashlib
import os
import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import fsspec
import numpy as np
import pytest
from PIL import Image

from inpaint.data import inspection, pipeline
from inpaint.data.decode import DEFAULT_LIMITS, Limits
from inpaint.data.inspection import FILES, files_of, inspect_files
from inpaint.data.quarantine import Reason
from inpaint.data.sources import CsvSource, FolderSource, JoinedSource
from inpaint.errors import BadRow, InpaintError, TooManyBadRows
from inpaint.stopping import StopToken
from tests.unit.data import images

LONG_AGO = 1.6e9


@pytest.fixture
def opened(monkeypatch):
    """The files that are opened, in order; Ray Data's tasks run here, three files each."""
    names = []

    def counted(root, relative, *args):
        names.append(f"{os.path.basename(root.path)}/{relative}")
        return reading(root, relative, *args)

    def inspect_all(files, limits, remember, look):
        for start in range(0, files.num_rows, 3):
            yield inspect_files(files.slice(start, 3), limits, None, remember, look)

    reading = inspection.read
    monkeypatch.setattr(inspection, "read", counted)
    monkeypatch.setattr(pipeline, "_inspect_all", inspect_all)
    return names


@pytest.fixture
def folder(tmp_path):
    """Four pictures with masks that were there for years, and a CSV of six rows."""
    root = tmp_path / "set"
    root.mkdir()
    for i in range(4):
        (root / f"{i}.png").write_bytes(images.encoded(images.picture(40, 30 + i)))
        (root / f"m{i}.png").write_bytes(images.encoded(images.mask(40, 30 + i)))
    lines = [f"m{i}.png,{i}.png,{i}.png,thing {i}" for i in range(4)] + ["m0.png,0.png,,again", ",0.png,,x"]
    (root / "set.csv").write_text("\n".join(["mask,output,input,prompt", *lines]))
    age(root)
    return root


def age(root):
    for path in root.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))


def read(source, tmp_path, **options):
    return pipeline.read_manifest(source, memory=str(tmp_path / "memory.parquet"), **options)


def test_each_file_is_opened_once_however_many_rows_use_it(folder, opened, tmp_path):
    manifest, bad = pipeline.read_manifest(CsvSource(path=folder / "set.csv"))
    assert bad == [] and sorted(opened) == sorted(f"set/{n}{i}.png" for n in ("", "m") for i in range(4))
    assert [row.id for row in manifest.rows()] == ["0.png", "1.png", "2.png", "3.png", "0.png#2", "0.png#3"]
    assert [(row.width, row.height) for row in manifest.rows()] == [(40, n) for n in (30, 31, 32, 33, 30, 30)]


def test_a_digest_is_that_of_the_bytes_of_all_files(folder, opened):
    manifest, _ = pipeline.read_manifest(CsvSource(path=folder / "set.csv"))

    def digest(*names):
        files = [hashlib.sha256((folder / n).read_bytes()).digest() if n else bytes(32) for n in names]
        return hashlib.sha256(b"".join(files)).hexdigest()

    rows = {row.id: row.digest for row in manifest.rows()}
    assert rows["1.png"] == digest("1.png", "1.png", "m1.png")
    assert rows["0.png#2"] == digest("0.png", None, "m0.png")
    assert rows["0.png#3"] == digest("0.png", None, None)


def test_a_second_inspection_opens_only_what_changed(folder, opened, tmp_path):
    source = CsvSource(path=folder / "set.csv")
    first, _ = read(source, tmp_path)
    opened.clear()
    again, _ = read(source, tmp_path)
    assert opened == [] and again.hash == first.hash and again.table == first.table
    (folder / "1.png").write_bytes(images.encoded(images.picture(40, 31), compress_level=0))  # other bytes, old time
    os.utime(folder / "1.png", (LONG_AGO, LONG_AGO))
    os.utime(folder / "m2.png", (LONG_AGO + 1, LONG_AGO + 1))
    changed, _ = read(source, tmp_path)
    assert sorted(opened) == ["set/1.png", "set/m2.png"]
    assert first.difference(changed) == "6 rows then, 6 now; changed: 1.png (bytes of the files)"
    opened.clear()
    assert read(source, tmp_path)[0].hash == changed.hash and opened == []
    # What the memory says is what opening says.
    assert pipeline.read_manifest(source)[0].table == changed.table


def test_what_may_have_changed_again_at_once_is_not_remembered(folder, opened, tmp_path):
    source = CsvSource(path=folder / "set.csv")
    os.utime(folder / "3.png")
    read(source, tmp_path)
    opened.clear()
    read(source, tmp_path)
    assert opened == ["set/3.png"]


def test_what_was_refused_is_opened_again_and_named_again(folder, opened, tmp_path):
    source = CsvSource(path=folder / "set.csv")
    (folder / "m1.png").write_bytes(b"broken")
    age(folder)
    _, bad = read(source, tmp_path, max_bad_fraction=0.5)
    opened.clear()
    _, again = read(source, tmp_path, max_bad_fraction=0.5)
    assert opened == ["set/m1.png"] and again == bad
    assert [(q.row, q.name, q.field, q.reason) for q in bad] == [(3, "1.png", "mask", Reason.NOT_AN_IMAGE)]


def test_limits_hold_for_what_is_remembered_too(folder, opened, tmp_path):
    source = CsvSource(path=folder / "set.csv")
    read(source, tmp_path)
    opened.clear()
    _, bad = read(source, tmp_path, limits=Limits(max_pixels=40 * 32), max_bad_fraction=0.5)
    assert sorted(opened) == ["set/3.png", "set/m3.png"]
    assert [(q.name, q.reason) for q in bad] == [("3.png", Reason.TOO_MANY_PIXELS)]


@pytest.mark.parametrize("damaged", ["whole", "columns"])
def test_a_memory_that_cannot_be_read_is_told_and_made_anew(folder, opened, tmp_path, damaged):
    read(CsvSource(path=folder / "set.csv"), tmp_path)
    data = (tmp_path / "memory.parquet").read_bytes()
    damage = b"not parquet" if damaged == "whole" else b"PAR1" + b"\xff" * 300 + data[304:]
    (tmp_path / "memory.parquet").write_bytes(damage)
    with pytest.warns(UserWarning, match="(?s)cannot be read .*: all files are opened again"):
        read(CsvSource(path=folder / "set.csv"), tmp_path)
    opened.clear()
    read(CsvSource(path=folder / "set.csv"), tmp_path)
    assert opened == []


def test_captions_and_equal_names_in_several_folders_are_remembered(tmp_path, opened):
    for name in ("one", "two"):
        (tmp_path / "sets" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "sets" / name / f"{i}.png").write_bytes(images.encoded(images.picture(30 + i, len(name) * 10)))
            (tmp_path / "sets" / name / f"{i}.txt").write_text(f"{name} {i}")
    age(tmp_path / "sets")
    one, two = (FolderSource(path=tmp_path / "sets" / name) for name in ("one", "two"))
    joined = JoinedSource(parts=((one, 1), (two, 1), (replace(one, weight=0.5), 1)))
    first, _ = read(joined, tmp_path)
    assert len(opened) == len(set(opened)) == 12
    assert [row.prompt for row in first.rows()] == [f"{n} {i}" for n in ("one", "two", "one") for i in range(3)]
    assert len(set(first.table["id"].to_pylist())) == 9
    opened.clear()
    assert read(joined, tmp_path)[0].table == first.table and opened == []
    (tmp_path / "sets" / "two" / "1.txt").write_text("another")
    changed, _ = read(joined, tmp_path)
    assert opened == ["two/1.txt"] and changed.row(4).prompt == "another"


def test_bad_rows_of_joined_sources_are_named_with_their_folder(tmp_path, opened):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(images.encoded(images.picture()))
    (tmp_path / "two" / "b.png").write_bytes(b"x")
    parts = tuple((FolderSource(path=tmp_path / name), 1) for name in ("one", "two"))
    _, bad = pipeline.read_manifest(JoinedSource(parts=parts), max_bad_fraction=0.5)
    assert [(q.row, q.name) for q in bad] == [(2, f"{tmp_path}/two/b.png")]


def test_rows_do_not_depend_on_how_the_listing_is_cut(folder, opened, monkeypatch):
    (folder / "m1.png").unlink()
    whole = pipeline.read_manifest(CsvSource(path=folder / "set.csv"), max_bad_fraction=0.5)
    monkeypatch.setattr("inpaint.data.sources.CHUNK", 2)
    monkeypatch.setattr(inspection, "PIECE", 2)
    parts = pipeline.read_manifest(CsvSource(path=folder / "set.csv"), max_bad_fraction=0.5)
    assert parts == whole and parts[0].hash == whole[0].hash


@pytest.mark.parametrize(
    ("aspects", "cut"),
    [
        ((1.0,), ["2.png", "3.png"]),
        ((0.5,), []),
        ((4.0,), ["1.png", "2.png", "3.png"]),
        ((1.0, 0.5), []),
        ((1.0, 2.0), ["2.png", "3.png"]),
        ((), []),
    ],
)
def test_holes_that_no_crop_holds_are_counted_and_named_once(tmp_path, opened, aspects, cut):
    for i, (width, high, wide) in enumerate([(40, 10, 10), (40, 20, 12), (80, 10, 41), (80, 40, 40)]):
        mask = np.zeros((40, width), dtype=np.uint8)
        top = min(4, 40 - high)
        mask[top : top + high, 5 : 5 + wide] = 255
        (tmp_path / f"{i}.png").write_bytes(images.encoded(images.picture(width, 40)))
        (tmp_path / f"m{i}.png").write_bytes(images.encoded(Image.fromarray(mask)))
    lines = ["mask,output,prompt", *(f"m{i}.png,{i}.png,x" for i in range(4)), ",0.png,y"]
    (tmp_path / "set.csv").write_text("\n".join(lines))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        manifest, bad = pipeline.read_manifest(CsvSource(path=tmp_path / "set.csv"), crop_aspects=aspects)
    assert len(manifest) == 5 and bad == []
    told = [str(w.message) for w in caught]
    names = ", ".join(cut)
    expected = f"{len(cut)} of 5 rows have a hole that no crop of the training's shape holds beside something that is"
    assert all(f"kept ({names})" in text for text in told)
    assert [text.startswith(expected) for text in told] == [True] * bool(cut)


def test_images_of_the_crops_own_shape_hold_any_hole(tmp_path, opened):
    mask = np.full((1120, 480), 255, dtype=np.uint8)
    mask[500:600, 200:300] = 0
    (tmp_path / "0.png").write_bytes(images.encoded(images.picture(480, 1120)))
    (tmp_path / "m0.png").write_bytes(images.encoded(Image.fromarray(mask)))
    (tmp_path / "set.csv").write_text("mask,output,prompt\nm0.png,0.png,x")
    aspect = 448 / 192
    assert 1120 / aspect < 480, "rounded"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.read_manifest(CsvSource(path=tmp_path / "set.csv"), crop_aspects=(aspect,))


def test_remote_files_are_fetched_side_by_side():
    memory, together, count = fsspec.filesystem("memory"), threading.Barrier(4), 8
    for i in range(count):
        memory.pipe(f"/many/{i}.png", images.encoded(images.picture(20 + i, 20)))
    listed = FolderSource(path="fsspec+memory://many").listing().table
    files, places = files_of(listed)
    assert files.schema == FILES and places["image"].tolist() == list(range(count)) and set(places["hole"]) == {-1}

    def fetched_together(*args):
        together.wait(timeout=30)
        return reading(*args)

    reading = inspection.read
    alone = inspect_files(files, DEFAULT_LIMITS, None, False)
    with ThreadPoolExecutor(4) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection, "read", fetched_together)
        assert inspect_files(files, DEFAULT_LIMITS, pool, False) == alone
    assert alone["width"].to_pylist() == list(range(20, 20 + count))


def test_what_pillow_says_of_files_that_are_used_is_counted_by_kind(folder, opened, tmp_path):
    """Not written to the console of some worker, once for each file; also where the file is remembered."""
    data = images.with_orientation(images.picture(), images.ROTATED, "JPEG")
    at = data.index(b"Exif\0\0") + 14
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(data[:at] + bytes([40 + i, 0, 9]) + data[at + 3 :])
    (folder / "photos.csv").write_text("output,prompt\n" + "".join(f"{i}.jpg,x\n" for i in range(3)) + "0.png,x\n")
    age(folder)
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert len(read(CsvSource(path=folder / "photos.csv"), tmp_path)[0]) == 4
        (told,) = [str(w.message) for w in caught]
        assert re.match(r"3 files are used although they are damaged: .*N.* \(the first: 0.jpg\)", told), told
        opened.clear()
    assert opened == []


def test_images_are_looked_at_where_more_is_asked_of_them_also_those_that_are_remembered(folder, opened, tmp_path):
    """As composites are, for their grid."""
    source = FolderSource(path=folder, prompt="x")
    age(folder)
    read(source, tmp_path)
    opened.clear()

    def look(image):
        assert image.ndim == 3 and image.dtype == np.uint8
        raise BadRow("image", Reason.OTHER_GRID, "three columns")

    with pytest.raises(TooManyBadRows, match="x another grid\n.*: another grid: three columns"):
        read(source, tmp_path, look=look)


def test_a_stop_is_heard_between_files(folder, opened):
    stop = StopToken()
    seen = []

    def progress(done, total):
        seen.append((done, total))
        stop.request()

    with pytest.raises(InpaintError, match="stopped as asked"):
        pipeline.read_manifest(CsvSource(path=folder / "set.csv"), progress=progress, stop=stop)
    assert seen == [(3, 8)]
