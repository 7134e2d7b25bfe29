"""`ray_jobs.generate`: its flags, what it refuses, and a run on Ray that goes on."""

from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

from inpaint.errors import InpaintError
from inpaint.evaluate.prompts import dreambench_prompts
from inpaint.paint.batch import PaintSettings
from inpaint.paint.request import SamplingSettings
from inpaint.recipes.generate import CELL, GeneratePictures, _prompts, generate_pictures
from inpaint.rowmap import ActorPool
from tests.tiny import tiny_sd


def test_its_flags():
    given = "--base toy --prompts p.txt --n 8 --seed 5 --size 64 --steps 6 --output out --actors 2"
    assert tyro.cli(GeneratePictures, args=given.split()) == GeneratePictures(
        prompts="p.txt",
        n=8,
        output="out",
        settings=PaintSettings(base="toy", seed=5, sampling=SamplingSettings(size=64, steps=6)),
        pool=ActorPool(actors=2),
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give --prompt, --prompts"),
        ({"prompt": "a", "prompts": "p.txt"}, "give --prompt, --prompts"),
        ({"prompt": "a", "living": True}, "--living is for --dreambench"),
        ({"prompt": "a", "category": "CDP_COS"}, "CDP_COS: .*give --adapter"),
        ({"prompt": "a", "settings": PaintSettings(sampling=SamplingSettings(feather=1))}, "--feather.* for photos"),
    ],
)
def test_what_would_be_ignored_is_refused(given, message):
    with pytest.raises(InpaintError, match=message):
        GeneratePictures(output="out", **given)


def test_a_subject_stands_for_the_papers_prompts():
    found = _prompts(GeneratePictures(dreambench="sks dog", living=True, output="out"))
    assert found == dreambench_prompts("sks dog", living=True)


def test_prompts_of_a_file_are_painted_on_ray_and_the_next_run_goes_on(ray_cluster, tmp_path: Path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffa red box\r\n\n  wood \n".encode())
    out = f"file://{tmp_path}/out"
    config = GeneratePictures(
        prompts=str(tmp_path / "prompts.txt"),
        n=2,
        width=2 * CELL,
        height=32,
        output=out,
        settings=PaintSettings(base=str(tiny_sd(tmp_path / "sd4")), sampling=SamplingSettings(steps=1)),
    )
    assert generate_pictures(config) == f"4 made, 0 were done: {out}/grid.png"
    assert Image.open(tmp_path / "out/wood/1.png").size == (2 * CELL, 32)
    grid = np.asarray(Image.open(tmp_path / "out/grid.png"))
    assert grid.shape == (2 * 16, 2 * CELL, 3)
    small = np.asarray(Image.open(tmp_path / "out/wood/1.png").reduce(2)).astype(int)
    assert np.abs(grid[16:, CELL:] - small).mean() < 8
    assert generate_pictures(config) == f"0 made, 4 were done: {out}/grid.png"
    (tmp_path / "latin.txt").write_bytes(b"a caf\xe9")
    with pytest.raises(InpaintError, match="is no UTF-8"):
        generate_pictures(GeneratePictures(prompts=str(tmp_path / "latin.txt"), output=out))
