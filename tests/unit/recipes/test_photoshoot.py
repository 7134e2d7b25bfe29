"""`ray_jobs.enhance` and `ray_jobs.photoshoot`: the product alone is repainted, and every photo's way is told."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inpaint.data.rows import Manifest
from inpaint.errors import InpaintError
from inpaint.models.base import load_base
from inpaint.paint.batch import PaintSettings
from inpaint.paint.denoise import Batch
from inpaint.paint.request import SamplingSettings
from inpaint.recipes import captioning, finding
from inpaint.recipes.enhancing import ENHANCED, EnhanceSettings, read_enhance_models
from inpaint.recipes.found_tables import read_lines
from inpaint.recipes.photoshoot import EnhancePhotos, Photoshoot, plan_stages, write_manifest
from inpaint.rowmap import ActorPool, ActorResources, map_stages
from inpaint.vision.captioner import CaptionerSettings
from inpaint.vision.control import ControlKind, ControlSettings
from inpaint.vision.finder import Findings, FindQuery, Found
from inpaint.vision.finders import FinderSettings
from tests.tiny import SIZE, tiny_sd_inpaint
from tests.tiny_vision import tiny_blip, tiny_clipseg
from tests.unit.paint.examples import controlnet_of
from tests.unit.recipes.rows import rows_below

HERE = ActorResources("cpu", 1)
PLACE = np.s_[8:20, 10:24]


class RedFinder:
    """Finds what is red."""

    threshold = 0.4

    def find(self, images, query: FindQuery) -> list[Findings]:
        def findings(image: np.ndarray) -> Findings:
            mask, name = image[..., 0] > 200, query.products[0].name
            found = (Found(product=name, score=0.9, box=(10, 8, 24, 20), mask=mask),) if mask.any() else ()
            return Findings(found=found, best={name: 0.9 if found else 0.1})

        return [findings(image) for image in images]


class WordyCaptioner:
    def caption(self, images) -> list[str]:
        return ["a red shoe" if (image[..., 0] > 200).any() else "nothing" for image in images]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    base = str(tiny_sd_inpaint(folder / "base"))
    controlnet_of(load_base(base)).save_pretrained(folder / "net")
    seen = {"finder": str(tiny_clipseg(folder / "clipseg")), "captioner": str(tiny_blip(folder / "blip"))}
    return {"base": base, "net": str(folder / "net"), **seen}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two with a red product, in their own formats, one of these with alpha, and one without."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, (name, red) in enumerate((("a.png", True), ("b.jpg", False), ("c.webp", True))):
        pixels = np.random.default_rng(number).integers(0, 150, (SIZE, SIZE, 3), dtype=np.uint8)
        if red:
            pixels[PLACE] = (255, 0, 0)
        if name == "a.png":
            pixels = np.dstack([pixels, np.full((SIZE, SIZE), 200, np.uint8)])
        options = {"lossless": True} if name.endswith("webp") else {}
        Image.fromarray(pixels).save(folder / name, **options)
    return folder


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pictures in each U-Net call."""
    seen: list[int] = []
    real = Batch.advance
    monkeypatch.setattr(Batch, "advance", lambda self, unet: (seen.append(len(self.rows)), real(self, unet))[1])
    monkeypatch.setattr(finding, "load_finder", lambda settings, device: RedFinder())
    monkeypatch.setattr(captioning, "load_captioner", lambda settings, device: WordyCaptioner())
    return seen


def settings(models: dict[str, str], photos: Path, **more: object) -> dict[str, object]:
    sampling = SamplingSettings(steps=2, guidance_scale=1.0)
    enhance = EnhanceSettings(
        controlnet=models["net"],
        pictures=ControlSettings(control=ControlKind.EDGES),
        paint=PaintSettings(base=models["base"], sampling=sampling),
        enhance_prompt="a blue {product}",
    )
    finder = FinderSettings(finder=models["finder"])
    output = str(photos.parent / "out")
    return {"data": str(photos), "output": output, "products": ("shoe",), "finder": finder, "enhance": enhance, **more}


def run(
    config: EnhancePhotos, prompts: Mapping[str, str] | None = None
) -> tuple[list[tuple[int, int]], dict[str, int]]:
    """(done, done before) of each stage, and how many had which outcome. Args: prompts: captions beside photos."""
    rows = [replace(row, prompt=(prompts or {}).get(row.id, "")) for row in rows_below(config.data)]
    manifest = Manifest.of(rows, (1,))
    items, stages, bad = plan_stages(config, manifest, read_enhance_models(config.enhance))
    reports = map_stages(items, stages, config.output, here=HERE, quarantined=bad)
    counts = write_manifest(config.output, manifest.table["id"].to_pylist(), [stage.name for stage in stages])
    return [(report.done, report.skipped) for report in reports], counts


def test_products_alone_are_repainted_and_the_others_come_back_as_they_were(models, photos, forwards):
    config = EnhancePhotos(**settings(models, photos))
    reports, counts = run(config)
    assert reports == [(3, 0), (3, 0)] and counts == {"enhanced": 2, "skipped": 1, "set aside": 0, "not done": 0}
    out = Path(config.output)
    assert (out / "b.jpg").read_bytes() == (photos / "b.jpg").read_bytes() and not (out / "b.png").exists()
    assert sum(forwards) == 2 * 2, "a photo without a product costs no forward"
    hole = np.zeros((SIZE, SIZE), bool)
    hole[PLACE] = True
    for before, after in (("a.png", "a.png"), ("c.webp", "c.png")):
        was, is_now = (np.asarray(Image.open(path)) for path in (photos / before, out / after))
        assert np.array_equal(was[~hole], is_now[~hole]) and not np.array_equal(was[hole], is_now[hole])
    line = read_lines(config.output, ENHANCED)["a.png"]
    assert line["prompt"] == "a blue shoe" and line["products"] == ["shoe"] and line["kept_pixels_changed"] == 0
    told = {one["id"]: one for one in map(json.loads, (out / "manifest.jsonl").read_text().splitlines())}
    assert told["b.jpg"]["outcome"] == "skipped" and told["b.jpg"]["reason"].startswith("no product: shoe has 0.10")
    assert run(config)[0] == [(0, 3), (0, 3)] and sum(forwards) == 4


def test_the_controlnet_and_its_weight_decide_the_picture(models, photos, forwards):
    whole = EnhancePhotos(**settings(models, photos))
    run(whole)
    first = (Path(whole.output) / "a.png").read_bytes()
    run(replace(whole, enhance=replace(whole.enhance, conditioning_scale=0.0)))
    assert (Path(whole.output) / "a.png").read_bytes() != first
    assert sum(forwards) == 8, "another weight is another picture"


def test_captions_find_their_way_into_prompts(models, photos, forwards):
    (photos / "c.txt").write_text("my own words")
    captioner = CaptionerSettings(captioner=models["captioner"])
    config = Photoshoot(**settings(models, photos, tag="ppz", captioner=captioner))
    config = replace(config, enhance=replace(config.enhance, enhance_prompt="{caption}, {product}"))
    reports, _ = run(config)
    assert reports == [(3, 0)] * 3
    prompts = {name: line.get("prompt") for name, line in read_lines(config.output, ENHANCED).items()}
    assert prompts == {"a.png": "ppz, a red shoe, shoe", "b.jpg": None, "c.webp": "my own words, shoe"}
    assert (Path(config.output) / "captions" / "a.txt").read_text() == "ppz, a red shoe\n"
    assert not (photos / "a.txt").exists()
    lines = map(json.loads, (Path(config.output) / "manifest.jsonl").read_text().splitlines())
    assert Counter(line["outcome"] for line in lines) == {"enhanced": 2, "skipped": 1}


def test_a_photo_that_cannot_be_read_is_told_by_its_reason(models, photos, forwards):
    config = EnhancePhotos(**settings(models, photos))
    manifest = Manifest.of(rows_below(photos), (1,))
    (photos / "a.png").unlink()
    items, stages, bad = plan_stages(config, manifest, read_enhance_models(config.enhance))
    map_stages(items, stages, config.output, here=HERE, quarantined=bad)
    counts = write_manifest(config.output, ["a.png", "b.jpg", "c.webp"], [stage.name for stage in stages])
    assert counts == {"enhanced": 1, "skipped": 1, "set aside": 1, "not done": 0}


def test_a_caption_that_calls_an_adapter_which_is_not_there_sets_its_photo_aside(models, photos, forwards):
    wanted = settings(models, photos)
    wanted["enhance"] = replace(wanted["enhance"], enhance_prompt="{caption}, {product}")
    _, counts = run(EnhancePhotos(**wanted), {"c.webp": "a shoe <lora:other:1>"})
    assert counts == {"enhanced": 1, "skipped": 1, "set aside": 1, "not done": 0}
    assert "'other' in <lora" in (photos.parent / "out/quarantine.jsonl").read_text()
    assert sum(forwards) == 2, "of the other one alone"
    # One beside a photo of a CSV is read with the photo.
    wanted |= {"captioner": CaptionerSettings(captioner=models["captioner"]), "output": str(photos.parent / "anew")}
    (photos / "a.txt").write_text("a shoe <lora:another:1>")
    _, counts = run(Photoshoot(**wanted))
    assert counts == {"enhanced": 1, "skipped": 2, "set aside": 0, "not done": 0}
    assert "'another' in <lora" in read_lines(str(photos.parent / "anew"), ENHANCED)["a.png"]["reason"]
    assert sum(forwards) == 4
    with pytest.raises(InpaintError, match="'third' in <lora"):
        run(Photoshoot(**wanted, tag="<lora:third:1>"))


def test_what_makes_no_sense_is_refused(models, photos):
    wanted = settings(models, photos)
    with pytest.raises(InpaintError, match="--not"):
        EnhancePhotos(**{**wanted, "products": (), "negatives": ("a picture",)})
    with pytest.raises(InpaintError, match="products"):
        Photoshoot(**{**wanted, "products": ()})
    with pytest.raises(InpaintError, match="base: give one"):
        EnhancePhotos(data="d", output="o")
    with pytest.raises(InpaintError, match="'other' in <lora"):
        read_enhance_models(replace(wanted["enhance"], enhance_prompt="a {product} <lora:other:1>"))
    with pytest.raises(InpaintError, match="colour"):
        EnhanceSettings(enhance_prompt="a {colour} thing")
    with pytest.raises(InpaintError, match="ControlNet nowhere"):
        read_enhance_models(replace(wanted["enhance"], controlnet="nowhere"))
    assert EnhancePhotos(**wanted, pool=ActorPool(max_batch=2)).pool.max_batch == 2
