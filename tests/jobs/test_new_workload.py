"""A new workload is one recipe: `own_workload.py` goes through the whole house without a change in `inpaint/`.

`test_serve.py` serves what is trained here.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import inpaint
from inpaint.data.latent_files import Stored
from inpaint.data.rows import Manifest
from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import load_adapter
from inpaint.paint.batch import PaintSettings, paint_manifest
from inpaint.paint.request import SamplingSettings
from inpaint.rowmap import ActorResources
from inpaint.train.checkpoint import CheckpointStore
from tests.jobs.conftest import StyleRun

pytestmark = pytest.mark.timeout(300)


def test_it_takes_at_most_60_lines() -> None:
    assert len(Path(__file__).with_name("own_workload.py").read_text().splitlines()) <= 60


def test_it_reads_holds_out_trains_on_two_workers_and_validates(style: StyleRun) -> None:
    rows, held = (Manifest.load(style.folder / f"{name}.parquet") for name in ("manifest", "validation"))
    assert len(rows) + len(held) == style.count and len(held) >= 1
    assert not {row.image for row in rows.rows()} & {row.image for row in held.rows()}
    progress = CheckpointStore(str(style.folder / "checkpoints")).progress()
    assert progress is not None and progress.samples == 16
    assert progress.metrics.keys() == {"loss", "validation_loss"}
    assert json.loads((style.folder / "data" / "recipe.json").read_text())["tag"] == style.recipe.tag
    pictures = sorted((style.folder / "validation").glob("*.png"))
    assert len(pictures) == 2 and Image.open(pictures[0]).size[0] > 3 * 64
    (encoded,) = (Stored.at(space).keys for space in (style.folder / "latents").iterdir())
    assert len(rows) < len(encoded) == len(encoded.unique()), "images and masked images, each once"


def test_it_is_whole_without_its_data_and_refuses_other_settings(style: StyleRun, tmp_path: Path) -> None:
    again = replace(style.recipe, resume=True)
    hidden = tmp_path / "hidden"
    Path(style.recipe.data).rename(hidden)
    try:
        assert inpaint.run(again) == [str(style.adapter)]
    finally:
        hidden.rename(style.recipe.data)
    with pytest.raises(InpaintError, match="continue it with --resume"):
        inpaint.run(style.recipe)
    with pytest.raises(InpaintError, match="half was 'lower', now 'right'"):
        inpaint.run(replace(again, half="right"))


def test_its_adapter_has_no_token_and_paints(style: StyleRun, tmp_path: Path) -> None:
    adapter = load_adapter(style.adapter)
    assert adapter.embeds == () and adapter.card.prompt("a mug") == "inthisstyle, a mug"
    assert not any(name.startswith("text_encoder") for name in adapter.lora)
    assert "inthisstyle" in (style.adapter / "README.md").read_text()
    rows = Manifest.load(style.folder / "manifest.parquet").select(np.arange(2))
    settings = PaintSettings(base="toy", adapter=str(style.adapter), sampling=SamplingSettings(steps=2))
    report = paint_manifest(rows, settings, str(tmp_path), here=ActorResources("cpu", 1))
    assert report.done == 2
    line = json.loads((tmp_path / "painted.jsonl").read_text().splitlines()[0])
    assert line["prompt"].startswith("inthisstyle, ") and line["kept_pixels_changed"] == 0
