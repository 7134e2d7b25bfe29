"""`ray_jobs.paint`: a data set, one photo or a model of one's own; its flags, and what is refused before any work."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

from inpaint.diffusion.ddpm import PixelSampling
from inpaint.errors import BadRow, InpaintError
from inpaint.paint.batch import PaintSettings
from inpaint.paint.paste import kept_pixels_changed
from inpaint.paint.request import SamplingSettings
from inpaint.recipes.painting import PaintPhotos, paint_photos
from inpaint.rowmap import ActorPool
from tests.tiny import tiny_sd_inpaint
from tests.unit.paint.examples import request

ONE = {"image": "a.png", "mask": "m.png", "output": "out.png"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_sd_inpaint(tmp_path_factory.mktemp("tiny") / "sd9"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos with masks, the last of another size, and a CSV of them and of a broken one."""
    lines = [["input", "mask", "output", "prompt"]]
    for i in range(3):
        example = request(i, height=48 if i == 2 else 32)
        Image.fromarray(example.image).save(tmp_path / f"p{i}.png")
        Image.fromarray(example.hole).save(tmp_path / f"m{i}.png")
        lines.append([f"p{i}.png", f"m{i}.png", f"p{i}.png", f"a red box {i}"])
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    with (tmp_path / "set.csv").open("w", newline="") as file:
        csv.writer(file).writerows([*lines, ["", "", "broken.png", "nothing"]])
    return tmp_path


def array(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_its_flags():
    of_data = "--data set.csv --base toy --adapter A --output out --steps 6 --guidance-scale 2 --actors 3 --seed 4"
    assert tyro.cli(PaintPhotos, args=of_data.split()) == PaintPhotos(
        data="set.csv",
        output="out",
        settings=PaintSettings(base="toy", adapter="A", seed=4, sampling=SamplingSettings(steps=6, guidance_scale=2.0)),
        pool=ActorPool(actors=3),
    )
    of_model = "--model RUN --image a.png --mask m.png --output out.png --sampling.jump-count 3 --label cat --seed 4"
    assert tyro.cli(PaintPhotos, args=of_model.split()) == PaintPhotos(
        model="RUN", sampling=PixelSampling(jump_count=3), label="cat", settings=PaintSettings(seed=4), **ONE
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output": "out"}, "give --data"),
        ({"output": "out", "data": "d", "image": "i", "mask": "m"}, "give --data"),
        ({"output": "out.png", "image": "i"}, "give --data"),
        ({"output": "out", "data": "d", "model": "RUN"}, "--model fills one photo"),
        ({**ONE, "output": "out.jpg"}, "ends in .png"),
        ({**ONE, "label": "cat"}, "--label.*need --model"),
        ({**ONE, "pool": ActorPool(actors=2)}, "--actors.* are for --data"),
        ({**ONE, "category": "CDP_COS", "settings": PaintSettings(base="toy")}, "--category CDP_COS: .*give --adapter"),
        ({"output": "out", "data": "d.CSV", "prompt": "a box"}, "a CSV has columns for them"),
        ({**ONE, "sampling": PixelSampling(steps=3)}, "--sampling.*need --model"),
        ({**ONE, "model": "RUN", "prompt": "a box"}, "--model takes no text and no base"),
        ({**ONE, "model": "RUN", "settings": PaintSettings(base="toy")}, "--model takes no text and no base"),
        (
            {**ONE, "model": "RUN", "settings": PaintSettings(sampling=SamplingSettings(steps=3))},
            "give --seed.*--sampling",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(given, message):
    with pytest.raises(InpaintError, match=message):
        PaintPhotos(**given)


def test_one_photo_is_painted_without_ray(folder, base):
    def of(**changes: object) -> PaintPhotos:
        files = {"image": str(folder / "p0.png"), "mask": str(folder / "m0.png"), "output": str(folder / "one.png")}
        settings = PaintSettings(base=base, sampling=SamplingSettings(steps=2))
        return PaintPhotos(**{**files, "prompt": "a red box", "settings": settings, **changes})

    assert paint_photos(of()) == str(folder / "one_comparison.png")
    assert array(folder / "one_comparison.png").shape[1] > 3 * 32
    photo, hole = array(folder / "p0.png"), array(folder / "m0.png")
    result = array(folder / "one.png")
    assert kept_pixels_changed(photo, result, hole) == 0 and (result != photo)[hole].any()
    with pytest.raises(BadRow, match=r"mask: another size .*32 x 48, the photo is 32 x 32"):
        paint_photos(of(mask=str(folder / "m2.png")))
    with pytest.raises(InpaintError, match=r"image .*absent.png: there is no such file"):
        paint_photos(of(image=str(folder / "absent.png")))
    Image.fromarray(np.zeros((32, 32), dtype=np.uint8)).save(folder / "black.png")
    with pytest.raises(BadRow, match="no pixel is white"):
        paint_photos(of(mask=str(folder / "black.png")))


def test_a_data_set_is_painted_on_ray_from_url_to_url(ray_cluster, folder, base):
    out = folder / "out"
    config = PaintPhotos(
        data=f"file://{folder}/set.csv",
        output=f"file://{out}",
        settings=PaintSettings(base=base, seed=7, sampling=SamplingSettings(steps=2)),
        pool=ActorPool(max_batch=2, cpus_per_actor=1.0),
    )
    assert paint_photos(config) == f"3 painted, 0 were done, 1 in file://{out}/quarantine.jsonl: file://{out}"
    (bad,) = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert (bad["name"], bad["row"]) == ("broken.png", 5)
    for i in range(3):
        photo, hole, result = array(folder / f"p{i}.png"), array(folder / f"m{i}.png"), array(out / f"p{i}.png")
        assert kept_pixels_changed(photo, result, hole) == 0 and (result != photo)[hole].any()
    (folder / "p0.png").unlink()
    assert paint_photos(config) == f"0 painted, 2 were done, 2 in file://{out}/quarantine.jsonl: file://{out}"
