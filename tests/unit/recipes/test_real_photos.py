"""Stages that look at photos, on real ones, by real classes with random weights: every photo has its row."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from inpaint.data.rows import Manifest
from inpaint.paint.batch import PaintSettings
from inpaint.recipes.captioning import CAPTIONED
from inpaint.recipes.enhancing import EnhanceSettings, read_enhance_models
from inpaint.recipes.finding import FOUND
from inpaint.recipes.found_tables import read_lines, write_tables
from inpaint.recipes.photoshoot import Photoshoot, plan_stages
from inpaint.rowmap import ActorPool, ActorResources, map_stages
from inpaint.vision.captioner import CaptionerSettings
from inpaint.vision.finders import FinderSettings
from tests.photos import PHOTOS
from tests.tiny_vision import tiny_blip, tiny_grounding_dino, tiny_sam
from tests.unit.recipes.rows import rows_below

pytestmark = pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"the photos are not in ../{PHOTOS.parent.name}")
ORIGINALS = 1024
"""Pixels of a longer side that only the originals have, which are up to 2048."""


def test_every_real_photo_is_captioned_and_looked_at(tmp_path: Path) -> None:
    folders = {"captioner": tiny_blip, "finder": tiny_grounding_dino, "segmenter": tiny_sam}
    models = {name: str(make(tmp_path / name)) for name, make in folders.items()}
    config = Photoshoot(
        data=str(PHOTOS),
        output=str(tmp_path / "out"),
        tag="ppz",
        # What random weights are sure of; in some photos nothing is.
        products=("hand bag|shoe:0.99999", "red:0.99999"),
        captioner=CaptionerSettings(captioner=models["captioner"], max_words=3, beams=1),
        finder=FinderSettings(finder=models["finder"], segmenter=models["segmenter"]),
        enhance=EnhanceSettings(paint=PaintSettings(base="toy")),
        caption_pool=ActorPool(max_batch=16),
    )
    manifest = Manifest.of(rows_below(PHOTOS))
    items, stages, unusable = plan_stages(config, manifest, read_enhance_models(config.enhance))
    captioning, finding = stages[0], replace(stages[1], then=None)
    map_stages(items, [captioning, finding], config.output, here=ActorResources("cpu", 1), quarantined=unusable)

    ids = sorted(row.id for row in manifest.rows())
    assert len(ids) == len(list(PHOTOS.glob("*/*/*.jpg"))) > 170
    captions, found = read_lines(config.output, CAPTIONED), read_lines(config.output, FOUND)
    assert sorted(captions) == sorted(found) == ids
    assert (tmp_path / "out/quarantine.jsonl").read_text() == ""
    assert all(line["caption"].startswith("ppz, ") for line in captions.values())
    counts = write_tables(config.output, manifest, found)
    assert sum(counts.values()) == len(ids) and 0 < counts["skipped"] < len(ids)
    large = [row.id for row in manifest.rows() if max(row.width, row.height) > ORIGINALS]
    looked = [one for one in ids if found[one]["found"]]
    assert len(large) > 8 and set(large) & set(looked), "originals among them"
    for one in {*large[::3], *looked[::20]} & set(looked):
        photo = ImageOps.exif_transpose(Image.open(PHOTOS / one))
        mask = np.asarray(Image.open(tmp_path / "out" / found[one]["mask"]).convert("L"))
        assert mask.shape == (photo.height, photo.width) and mask.max() == 255
