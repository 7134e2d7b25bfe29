"""`ray_jobs.caption`: a text file beside each photo, and what is there already stays."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inpaint.errors import InpaintError
from inpaint.recipes import captioning
from inpaint.recipes.captioning import CAPTIONED, CaptionPhotos, CaptionWorker, caption_photos, plan_captions
from inpaint.rowmap import ActorPool, ActorResources, MapReport, map_rows
from inpaint.vision.captioner import CaptionerSettings
from tests.tiny_vision import tiny_blip
from tests.unit.recipes.rows import rows_below

HERE = ActorResources("cpu", 1)


@pytest.fixture(scope="module")
def captioner(tmp_path_factory) -> CaptionerSettings:
    return CaptionerSettings(captioner=str(tiny_blip(tmp_path_factory.mktemp("blip"))), max_words=3)


@pytest.fixture
def config(captioner, tmp_path) -> CaptionPhotos:
    rng = np.random.default_rng(0)
    for number, name in enumerate(("a.png", "b.jpg", "sub/c.png")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)).save(path)
    return CaptionPhotos(data=str(tmp_path), tag="ppzocketv2", captioner=captioner)


def run(config: CaptionPhotos, rows: list | None = None) -> MapReport:
    """As the job does, in this process."""
    items, shared = plan_captions(rows or rows_below(config.data), config, "v1")
    worker = partial(CaptionWorker, config)
    return map_rows(items, worker, config.data, name=CAPTIONED, pool=ActorPool(), here=HERE, quarantined=shared)


def captions(config: CaptionPhotos) -> dict[str, str]:
    root = Path(config.data)
    return {path.relative_to(root).as_posix(): path.read_text() for path in sorted(root.rglob("*.txt"))}


def test_each_photo_gets_a_caption_that_begins_with_the_tag(config) -> None:
    assert (run(config).done, run(config).skipped) == (3, 3)
    written = captions(config)
    assert list(written) == ["a.txt", "b.txt", "sub/c.txt"]
    assert all(text.startswith("ppzocketv2, ") and text.endswith("\n") for text in written.values())
    lines = [json.loads(line) for line in (Path(config.data) / CAPTIONED).read_text().splitlines()]
    assert {line["id"]: line["caption"] + "\n" for line in lines} == {
        "a.png": written["a.txt"],
        "b.jpg": written["b.txt"],
        "sub/c.png": written["sub/c.txt"],
    }


def test_captions_that_are_there_stay_byte_for_byte_unless_told_otherwise(config) -> None:
    own = b"my own caption\r\nof two lines"
    (Path(config.data) / "a.txt").write_bytes(own)
    (Path(config.data) / "b.txt").write_text(" \n")
    run(config)
    assert (Path(config.data) / "a.txt").read_bytes() == own
    assert captions(config)["b.txt"].startswith("ppzocketv2, "), "an empty one is as none"
    edited = captions(config)["b.txt"].strip() + ", edited\n"
    (Path(config.data) / "b.txt").write_text(edited)
    run(config)
    run(replace(config, tag="another"))
    assert captions(config)["b.txt"] == edited and (Path(config.data) / "a.txt").read_bytes() == own
    run(replace(config, tag="another", overwrite=True))
    assert all(text.startswith("another, ") for text in captions(config).values())


def test_two_photos_of_one_caption_file_are_named_instead_of_written_over(config) -> None:
    Image.open(Path(config.data) / "a.png").save(Path(config.data) / "a.webp")
    report = run(config)
    assert {bad.name for bad in report.quarantined} == {"a.png", "a.webp"}
    assert list(captions(config)) == ["b.txt", "sub/c.txt"]


def test_a_photo_that_broke_meanwhile_is_set_aside(config) -> None:
    rows = rows_below(config.data)
    (Path(config.data) / "b.jpg").write_bytes(b"no photo")
    report = run(config, rows)
    assert (report.done, [bad.name for bad in report.quarantined]) == (2, ["b.jpg"])


@pytest.mark.parametrize("tag", ["two\nlines", " spaced"])
def test_a_tag_is_one_line(tag) -> None:
    with pytest.raises(InpaintError, match="tag"):
        CaptionPhotos(data="d", tag=tag)


def test_the_job_captions_a_folder_on_ray_and_names_what_is_no_photo(ray_cluster, config) -> None:
    (Path(config.data) / "broken.png").write_bytes(b"no photo")
    config = replace(config, pool=ActorPool(actors=1, cpus_per_actor=1.0, max_batch=2))
    assert caption_photos(config).startswith("3 captioned, 0 were done, 1 in ")
    assert caption_photos(config).startswith("0 captioned, 3 were done, 1 in ")
    assert list(captions(config)) == ["a.txt", "b.txt", "sub/c.txt"]


def test_a_captioner_that_is_not_there_is_told_before_anything_is_read(config, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(captioning, "read_rows", None)
    with pytest.raises(InpaintError, match="model .*nowhere"):
        caption_photos(replace(config, captioner=CaptionerSettings(captioner=str(tmp_path / "nowhere"))))
