"""Painting a data set: every usable row once, kept pixels untouched, restartable, to and from URLs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest
from PIL import Image

from inpaint.data.quarantine import Quarantined
from inpaint.data.rows import Manifest, Row
from inpaint.data.storage import open_root, opened
from inpaint.errors import InpaintError, TooManyBadRows
from inpaint.export.adapter_folder import LORA_FILE, save_adapter
from inpaint.paint.batch import PaintSettings, paint_manifest, read_models, row_seed
from inpaint.paint.paste import kept_pixels_changed
from inpaint.paint.request import SamplingSettings
from inpaint.rowmap import ActorPool, ActorResources, MapReport
from tests.adapters import made_up, without_tokens
from tests.unit.paint.examples import request

NAMES = [f"p{i}.png" for i in range(5)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos with masks; one of another size, the last without a mask."""
    folder = tmp_path_factory.mktemp("photos")
    for i, name in enumerate(NAMES):
        example = request(i, height=48 if i == 3 else 32)
        Image.fromarray(example.image).save(folder / name)
        Image.fromarray(example.hole).save(folder / f"m{i}.png")
    return folder


@pytest.fixture
def manifest(photos: Path) -> Manifest:
    return Manifest.of(
        Row(
            id=name,
            root=str(photos),
            image=name,
            hole=f"m{i}.png" if i != 4 else None,
            prompt=f"a red box {i}",
            width=32,
            height=48 if i == 3 else 32,
            digest="0" * 64,
        )
        for i, name in enumerate(NAMES)
    )


@pytest.fixture(scope="session")
def settings(tiny_folders) -> PaintSettings:
    return PaintSettings(base=str(tiny_folders["sd9"]), sampling=SamplingSettings(steps=2), seed=7)


def run(manifest: Manifest, settings: PaintSettings, output: object, **more: object) -> MapReport:
    return paint_manifest(manifest, settings, str(output), here=ActorResources("cpu", 1), **more)  # type: ignore[arg-type]


def array(where: object) -> np.ndarray:
    with opened(str(where)) as file:
        return np.array(Image.open(file))


def lines(output: object, name: str = "painted.jsonl") -> list[dict]:
    with opened(f"{output}/{name}") as file:
        return [json.loads(line) for line in file.read().splitlines()]


def uploaded(folder: Path, url: str) -> str:
    target = open_root(url)
    pafs.copy_files(str(folder), target.path, destination_filesystem=target.filesystem)
    return url


@pytest.fixture(params=["folder", "object store"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "folder" else f"fsspec+memory://{tmp_path.name}/painted"


def test_every_row_is_painted_and_keeps_its_kept_pixels(manifest, photos, settings, output):
    bad = Quarantined(row=9, name="x.png", field="output", reason="truncated or corrupt", detail="copy it again")
    report = run(manifest, settings, output, quarantined=[bad])
    assert (report.done, report.skipped, report.quarantined) == (5, 0, [bad])
    assert [line["name"] for line in lines(output, "quarantine.jsonl")] == ["x.png"]
    found = {line["id"]: line for line in lines(output)}
    assert sorted(found) == NAMES
    for i, name in enumerate(NAMES):
        line, photo = found[name], array(photos / name)
        assert (line["kept_pixels_changed"], line["seed"], line["output"]) == (0, row_seed(7, name), name)
        result = array(f"{output}/{name}")
        if i == 4:
            assert 0.05 < (result == photo).all(-1).mean() < 0.6, "without a mask the centre is kept"
        else:
            hole = array(photos / f"m{i}.png")
            assert kept_pixels_changed(photo, result, hole) == 0 and (result != photo)[hole].any()
        assert array(f"{output}/comparisons/{name}").shape[1] > 3 * photo.shape[1]


def test_a_second_run_paints_only_what_is_lost_and_paints_it_the_same(manifest, settings, tmp_path):
    out = tmp_path / "out"
    run(manifest, settings, out)
    lost = array(out / "p1.png")
    (out / "p1.png").unlink()
    again = run(manifest, settings, out, pool=ActorPool(max_batch=1))
    assert (again.done, again.skipped) == (1, 4)
    # Alone in its batch, it comes out the same.
    assert np.abs(array(out / "p1.png").astype(int) - lost).max() <= 1
    assert len(lines(out)) == 5
    other = replace(settings, sampling=SamplingSettings(steps=1))
    assert run(manifest, other, out).done == 5, "in another way it is another picture"


def test_base_and_adapter_may_be_urls_and_an_adapter_names_its_base(manifest, settings, tiny_folders, tmp_path):
    folder = tiny_folders["sd9"]
    adapter = save_adapter(tmp_path / "adapter", made_up(folder, 0, rank=2))
    few = manifest.select(np.arange(2))
    near = replace(settings, base=None, adapter=str(adapter))
    far = replace(
        settings,
        base=uploaded(folder, "fsspec+memory://models/tiny"),
        adapter=uploaded(adapter, "fsspec+memory://models/adapter"),
    )
    run(few, near, tmp_path / "near")
    run(few, far, tmp_path / "far")
    run(few, settings, tmp_path / "bare")
    assert np.array_equal(array(tmp_path / "near" / "p0.png"), array(tmp_path / "far" / "p0.png"))
    assert not np.array_equal(array(tmp_path / "near" / "p0.png"), array(tmp_path / "bare" / "p0.png"))
    with pytest.raises(InpaintError, match="memory://models/none: nothing is there"):
        run(few, replace(far, base="fsspec+memory://models/none"), tmp_path / "none")


def test_a_file_of_others_is_an_adapter_and_needs_a_base(manifest, settings, tiny_folders, tmp_path):
    made = without_tokens(made_up(tiny_folders["sd9"], 0, rank=2))
    folder = save_adapter(tmp_path / "adapter", replace(made, card=replace(made.card, alpha=2.0)))
    (tmp_path / "style.safetensors").write_bytes((folder / LORA_FILE).read_bytes())
    few = manifest.select(np.arange(2))
    for name in ("adapter", "style.safetensors"):
        run(few, replace(settings, adapter=str(tmp_path / name)), tmp_path / f"{name}_out")
    ours, theirs = (array(tmp_path / f"{name}_out" / "p0.png") for name in ("adapter", "style.safetensors"))
    assert np.array_equal(ours, theirs)
    with pytest.raises(InpaintError, match="base: give one"):
        read_models(replace(settings, base=None, adapter=str(tmp_path / "style.safetensors")))


def test_a_file_that_vanishes_or_changes_before_it_is_painted_goes_to_the_quarantine(manifest, settings, tmp_path):
    rows = [
        replace(row, hole={"p1.png": "m3.png", "p2.png": "none.png"}.get(row.id, row.hole)) for row in manifest.rows()
    ]
    report = run(Manifest.of(rows), settings, tmp_path / "out")
    assert report.done == 3
    found = {line["name"]: (line["field"], line["reason"]) for line in lines(tmp_path / "out", "quarantine.jsonl")}
    assert found == {"p1.png": ("mask", "another size than the output"), "p2.png": ("mask", "missing file")}


def test_what_users_did_wrong_is_told_as_such(manifest, settings, photos, tmp_path):
    out = tmp_path / "out"
    # Only the base knows how many steps it can be sampled in.
    with pytest.raises(InpaintError, match="steps 5000: this base can be sampled in 1 to 1000 steps"):
        run(manifest, replace(settings, sampling=SamplingSettings(steps=5000)), out)
    for wrong, message in (
        (PaintSettings(base=str(photos)), "no model_index.json"),
        (PaintSettings(), "base: give one"),
        (replace(settings, adapter=str(photos)), "not an adapter"),
    ):
        with pytest.raises(InpaintError, match=message):
            run(manifest, wrong, tmp_path / "untouched")
    assert not (tmp_path / "untouched").exists()
    with pytest.raises(TooManyBadRows):
        run(Manifest.of(replace(row, root=str(tmp_path)) for row in manifest.rows()), settings, out)
