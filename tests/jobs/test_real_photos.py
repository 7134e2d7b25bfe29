"""The whole job on real photos, in short form: every photo is used, none wrongly in quarantine, products are kept."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import inpaint
from inpaint.data.rows import Manifest
from inpaint.recipes.category_lora import CategoryLora
from inpaint.train.checkpoint import CHECKPOINTS, CheckpointStore
from tests.photos import PHOTOS, photo_rows, write_photo_csv

pytestmark = pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"the photos are not in ../{PHOTOS.parent.name}")
PAINTED = 8


@pytest.mark.timeout(400)
def test_real_photos_go_through_the_whole_job(ray_cluster: None, tmp_path: Path) -> None:
    rows = photo_rows()
    data = write_photo_csv(tmp_path, rows)
    output = tmp_path / "run"
    config = CategoryLora.of_preset("toy", data=str(data), output=str(output))
    one_epoch = replace(config.train, epochs=1, global_batch=8, max_micro_batch=4)
    inpaint.run(replace(config, card_samples=0, train=one_epoch))
    assert (output / "data" / "quarantine.jsonl").read_text() == ""
    manifest = Manifest.load(output / "manifest.parquet")
    assert sorted(row.image for row in manifest.rows()) == sorted(path for path, _ in rows)
    seen = CheckpointStore(str(output / CHECKPOINTS)).progress()
    assert seen is not None and seen.manifest == manifest.hash, "it was trained on these"
    assert (seen.samples, seen.unread) == (-(-len(rows) // 8) * 8, 0), "as many as there are, and all could be read"
    adapter = output / "adapters" / "shared"
    card = json.loads((adapter / "adapter.json").read_text())
    assert card["samples"] == -(-len(rows) // 8) * 8

    some = write_photo_csv(tmp_path, rows[:: len(rows) // PAINTED][:PAINTED])
    pictures = tmp_path / "painted"
    settings = inpaint.PaintSettings(base="toy", adapter=str(adapter), sampling=inpaint.SamplingSettings(steps=6))
    inpaint.paint_photos(inpaint.PaintPhotos(data=str(some), output=str(pictures), settings=settings))
    lines = [json.loads(line) for line in (pictures / "painted.jsonl").read_text().splitlines()]
    assert len(lines) == PAINTED
    for line in lines:
        photo = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / line["id"])).convert("RGB"))
        result = np.asarray(Image.open(pictures / line["output"]))
        assert result.shape == photo.shape
        kept = (result == photo).all(-1).mean()
        assert 0.02 < kept < 0.98, "something is kept, something is painted"
        assert line["kept_pixels_changed"] == 0
