"""A painting run on Ray Data: every usable row once, kept pixels untouched, restartable, bad rows set aside."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from inpaint.cluster import Node
from inpaint.data.rows import Manifest, Row
from inpaint.data.sources import CsvSource
from inpaint.errors import ClusterTooSmall, InpaintError, TooManyBadRows
from inpaint.paint import batch
from inpaint.paint.batch import PaintActor, PaintCluster, paint_dataset
from inpaint.paint.paste import kept_pixels_changed
from inpaint.paint.request import SamplingSettings
from inpaint.paint.rows import paint_file
from inpaint.paint.tasks import PaintSettings, row_seed
from tests.unit.paint.examples import request


@pytest.fixture
def products(tmp_path):
    """A CSV of four photos with masks, one of them of another size, a fifth without a mask, and a broken sixth."""
    folder = tmp_path / "set"
    folder.mkdir()
    rows = []
    for i in range(5):
        example = request(i, height=48 if i == 3 else 32)
        Image.fromarray(example.image).save(folder / f"p{i}.png")
        Image.fromarray(example.hole.astype(np.uint8) * 255).save(folder / f"m{i}.png")
        rows.append([f"p{i}.png", f"m{i}.png" if i != 4 else "", f"p{i}.png", f"a red box {i}"])
    (folder / "broken.png").write_bytes(b"\x89PNG broken")
    rows.append(["", "", "broken.png", "nothing"])
    with (folder / "set.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["input", "mask", "output", "prompt"], *rows])
    return folder / "set.csv"


@pytest.fixture
def settings(tiny_folders):
    return PaintSettings(base=str(tiny_folders["sd9"]), sampling=SamplingSettings(steps=2), seed=7)


@pytest.fixture
def without_ray(monkeypatch, products):
    """The same run with its actor in this process and a manifest made by hand: starting workers takes long."""
    rows = [
        Row(
            id=f"p{i}.png",
            root=str(products.parent),
            image=f"p{i}.png",
            hole=f"m{i}.png" if i != 4 else None,
            prompt=f"a red box {i}",
            width=32,
            height=48 if i == 3 else 32,
            digest="d" * 64,
        )
        for i in range(5)
    ]

    def paint_all(tasks, settings, load, cluster, limits):
        size = cluster.max_batch
        actor = PaintActor(settings=settings, load=load, limits=limits, cpus=1, use_gpu=False, max_batch=size)
        for start in range(0, len(tasks), cluster.max_batch):
            texts = [task.to_json() for task in tasks[start : start + cluster.max_batch]]
            columns = actor({"task": np.array(texts, dtype=object)})
            yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))

    monkeypatch.setattr(batch, "read_manifest", lambda *a, **k: (Manifest.of(rows), []))
    monkeypatch.setattr(batch, "_paint_all", paint_all)


def lines_of(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def array(path):
    return np.asarray(Image.open(path))


def test_a_run_on_ray_paints_every_usable_row(ray_cluster, products, settings, tmp_path):
    out = tmp_path / "out"
    seen = []
    report = paint_dataset(
        CsvSource(path=products),
        settings,
        out,
        cluster=PaintCluster(max_batch=2, cpus_per_actor=1.0),
        on_progress=lambda *counts: seen.append(counts),
    )
    assert (report.painted, report.skipped, [bad.name for bad in report.quarantined]) == (5, 0, ["broken.png"])
    assert seen == [(i, 5) for i in range(1, 6)]
    assert [bad["name"] for bad in lines_of(out, "quarantine.jsonl")] == ["broken.png"]
    lines = {line["id"]: line for line in lines_of(out, "painted.jsonl")}
    assert sorted(lines) == [f"p{i}.png" for i in range(5)]
    for i in range(4):
        line = lines[f"p{i}.png"]
        assert (line["kept_pixels_changed"], line["seed"]) == (0, row_seed(7, f"p{i}.png"))
        photo, hole = array(products.parent / f"p{i}.png"), array(products.parent / f"m{i}.png") > 127
        result = array(out / line["output"])
        assert kept_pixels_changed(photo, result, hole) == 0 and (result != photo)[hole].any()
        assert array(out / "comparisons" / line["output"]).shape[1] > 3 * photo.shape[1]


def test_a_second_run_paints_only_what_is_lost(without_ray, products, settings, tmp_path):
    out = tmp_path / "out"
    source = CsvSource(path=products)
    first = paint_dataset(source, settings, out)
    assert (first.painted, first.skipped) == (5, 0)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    again = paint_dataset(source, settings, out)
    assert (again.painted, again.skipped) == (0, 5)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.png")} == before
    # Painted again, alone in its batch, it comes out the same.
    lost = array(out / "p1.png")
    (out / "p1.png").unlink()
    third = paint_dataset(source, settings, out)
    assert (third.painted, third.skipped) == (1, 4)
    assert np.abs(array(out / "p1.png").astype(int) - lost).max() <= 1
    assert len(lines_of(out, "painted.jsonl")) == 5


def test_a_file_that_vanishes_before_it_is_painted_goes_to_the_quarantine(without_ray, products, settings, tmp_path):
    (products.parent / "m2.png").unlink()
    report = paint_dataset(CsvSource(path=products), settings, tmp_path / "out")
    assert report.painted == 4
    (bad,) = lines_of(tmp_path / "out", "quarantine.jsonl")
    assert (bad["name"], bad["field"], bad["reason"]) == ("p2.png", "mask", "missing file")


def test_what_users_did_wrong_inside_an_actor_is_told_as_such(without_ray, products, settings, tmp_path):
    # Only the base knows how many steps it can be sampled in, and only an actor loads it.
    with pytest.raises(InpaintError, match="steps 5000: this base can be sampled in 1 to 1000 steps"):
        paint_dataset(
            CsvSource(path=products), replace(settings, sampling=SamplingSettings(steps=5000)), tmp_path / "out"
        )


def test_a_set_without_a_usable_row_is_refused(without_ray, products, settings, tmp_path):
    for photo in products.parent.glob("p?.png"):
        photo.unlink()
    with pytest.raises(TooManyBadRows):
        paint_dataset(CsvSource(path=products), settings, tmp_path / "out")


def test_bases_are_checked_before_anything_is_read(products, settings, tmp_path):
    with pytest.raises(InpaintError, match="no model_index.json"):
        paint_dataset(CsvSource(path=products), PaintSettings(base=str(products.parent)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("asked", "nodes", "blocks", "needs"),
    [
        ({}, [Node(2)], 9, (1, 2, 0)),
        ({"actors": 2}, [Node(2)], 9, (2, 1, 0)),
        ({}, [Node(8), Node(8), Node(0)], 9, (2, 8, 0)),
        ({}, [Node(8, 4), Node(8, 4)], 9, (8, 1, 1)),
        ({"gpus_per_actor": 0.5}, [Node(8, 2)], 3, (3, 1, 0.5)),
        ({"gpus_per_actor": 0.0}, [Node(8, 2)], 9, (1, 8, 0)),
        ({}, [Node(8)], 1, (1, 8, 0)),
    ],
)
def test_actors_fill_the_cluster(monkeypatch, asked, nodes, blocks, needs):
    monkeypatch.setattr(batch, "cluster_nodes", lambda: tuple(nodes))
    found = batch._needs(PaintCluster(**asked), blocks)
    assert (found.workers, found.cpus_per_worker, found.gpus_per_worker) == needs


def test_more_actors_than_fit_are_refused(monkeypatch):
    monkeypatch.setattr(batch, "cluster_nodes", lambda: (Node(2),))
    with pytest.raises(ClusterTooSmall, match="3 worker"):
        batch._needs(PaintCluster(actors=3), 9)


def test_one_photo_is_painted_without_ray(products, settings, tmp_path):
    photo, mask = products.parent / "p0.png", products.parent / "m0.png"
    strip = paint_file(photo, mask, "a red box", tmp_path / "one.png", settings)
    assert strip == tmp_path / "one_comparison.png" and strip.is_file()
    result = array(tmp_path / "one.png")
    assert kept_pixels_changed(array(photo), result, array(mask) > 127) == 0
    with pytest.raises(InpaintError, match=r"mask: another size .*32 x 48, the photo is 32 x 32"):
        paint_file(photo, products.parent / "m3.png", "", tmp_path / "one.png", settings)
    with pytest.raises(InpaintError, match="ends in .png"):
        paint_file(photo, mask, "", tmp_path / "one.jpg", settings)
    with pytest.raises(InpaintError, match="image .*absent.png: cannot be read: No such file"):
        paint_file(tmp_path / "absent.png", mask, "", tmp_path / "one.png", settings)
