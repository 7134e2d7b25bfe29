"""Composites from single pictures, an adapter from composites, panels from the adapter: real photos where they are."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inpaint.data.panels import Grid, find_panels, panels_hole
from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import load_adapter
from inpaint.recipes.composites import MakeComposites, make_composites
from inpaint.recipes.panel_lora import TrainPanelLora, train_panels
from inpaint.recipes.panel_painting import PaintPanels, paint_panels
from inpaint.rowmap import ActorPool
from inpaint.toy.catalogue import render
from inpaint.train.encoding import Latents
from inpaint.train.settings import Precision, ValidationSettings
from tests.photos import PHOTOS, photo_rows
from tests.tiny import tiny_sdxl_inpaint

SHEETS = 4
GUTTER = 4
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four folders of `sheet0.jpg`, ..., one of which lacks the last."""
    folder = tmp_path_factory.mktemp("pictures")
    real = [PHOTOS / path for path, _ in photo_rows()[: 4 * (SHEETS + 1)]] if PHOTOS.is_dir() else []
    for number in range(4 * (SHEETS + 1)):
        sheet, panel = divmod(number, 4)
        where = folder / f"view{panel}" / f"sheet{sheet}.jpg"
        where.parent.mkdir(exist_ok=True)
        if real:
            where.write_bytes(real[number].read_bytes())
        else:
            Image.fromarray(render(0, number, 64).image).save(where)
    (folder / "view2" / f"sheet{SHEETS}.jpg").unlink()
    (folder / "view0" / "sheet0.txt").write_text("four views of one thing")
    return folder


@pytest.fixture(scope="module")
def sheets(ray_cluster: None, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sheets")
    config = MakeComposites(
        output=str(output),
        folders=tuple(str(pictures / f"view{n}") for n in range(4)),
        prompt="four photos",
        panel_size=(30, 62),
        gutter=GUTTER,
    )
    assert make_composites(config).startswith(f"{SHEETS} made, 0 were there, 1 in ")
    assert make_composites(config).startswith(f"0 made, {SHEETS} were there")
    return output


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_sdxl_inpaint(tmp_path_factory.mktemp("tiny") / "sdxl4", in_channels=4))


@pytest.fixture(scope="module")
def adapter(sheets: Path, base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the sheets, and of one in three columns that it cannot be trained on."""
    data = shutil.copytree(sheets, tmp_path_factory.mktemp("data") / "sheets")
    columns = np.random.default_rng(0).integers(0, 256, (64, 128, 3)).astype(np.uint8)
    columns[:, 40:44] = columns[:, 84:88] = 255
    Image.fromarray(columns).save(data / "columns.png")
    (data / "columns.txt").write_text("three views")
    run = tmp_path_factory.mktemp("run")
    config = TrainPanelLora(
        data_dir=str(data),
        output_dir=str(run),
        max_bad_fraction=0.2,
        model_id=base,
        num_epochs=2,
        image_size=64,
        lora_rank=2,
        train_text_encoders=True,
        mixed_precision=Precision.FP32,
        workers=1,
        zero_stage=0,
        max_micro_batch=2,
        card_samples=1,
        latents=Latents.STREAMED,
        validation=ValidationSettings(samples=4, pictures=1),
    )
    exported = train_panels(config)
    (bad,) = [json.loads(line) for line in (run / "data" / "quarantine.jsonl").read_text().splitlines()]
    assert (bad["name"], bad["reason"]) == ("columns.png", "another grid") and "make 3 columns" in bad["detail"]
    return exported


def test_composites_are_made_with_their_captions_and_what_lacks_a_panel_is_named(sheets: Path) -> None:
    assert sorted(path.name for path in sheets.glob("*.png")) == [f"sheet{n}.png" for n in range(SHEETS)]
    assert (sheets / "sheet0.txt").read_text() == "four views of one thing\n"
    assert (sheets / "sheet1.txt").read_text() == "four photos\n"
    picture = np.asarray(Image.open(sheets / "sheet1.png"))
    assert picture.shape == (60 + GUTTER, 124 + GUTTER, 3)
    assert (picture[30:34] == 255).all() and (picture[:, 62:66] == 255).all()
    (bad,) = [json.loads(line) for line in (sheets / "quarantine.jsonl").read_text().splitlines()]
    assert bad["name"] == f"sheet{SHEETS}" and "view2" in bad["detail"]


def test_composites_of_a_csv(ray_cluster: None, pictures: Path, tmp_path: Path) -> None:
    with (pictures / "views.csv").open("w", newline="") as file:
        rows = [["view0/sheet0.jpg", "view1/sheet0.jpg", "two"], ["view0/sheet1.jpg", "", "one"]]
        csv.writer(file).writerows([["panel0", "panel1", "prompt"], *rows])
    config = MakeComposites(
        output=str(tmp_path), data=str(pictures / "views.csv"), grid="1x2", panel_size=40, fit="pad", border=2
    )
    assert make_composites(config).startswith("1 made, 0 were there, 1 in ")
    assert np.asarray(Image.open(tmp_path / "views000002.png")).shape == (44, 84, 3)
    assert (tmp_path / "views000002.txt").read_text() == "two\n"
    with pytest.raises(InpaintError, match="no column panel2; a grid of 2x2 needs panel0, panel1, panel2, panel3"):
        make_composites(replace(config, grid="2x2"))


def test_an_adapter_of_composites_paints_panels_of_a_folder(
    sheets: Path, base: str, adapter: str, tmp_path: Path
) -> None:
    card = load_adapter(adapter).card
    assert card.samples == 2 * SHEETS and card.tokens == {} and card.rank == 2
    assert (Path(adapter) / "samples.png").is_file()
    config = PaintPanels(
        lora_path=adapter,
        data=str(sheets),
        output_dir=str(tmp_path),
        panels_to_inpaint=(1, 2),
        num_inference_steps=2,
        seed=3,
        pool=ActorPool(max_batch=2),
    )
    assert paint_panels(config).startswith(f"{SHEETS} painted")
    for number in range(SHEETS):
        before, after = (np.asarray(Image.open(folder / f"sheet{number}.png")) for folder in (sheets, tmp_path))
        changed = (before != after).any(-1)
        hole = panels_hole(before.shape[:2], find_panels(before, Grid()), (1, 2))
        assert hole.sum() == 2 * 30 * 62 and not changed[~hole].any() and changed[hole].mean() > 0.8
    lines = [json.loads(line) for line in (tmp_path / "painted.jsonl").read_text().splitlines()]
    assert {line["kept_pixels_changed"] for line in lines} == {0}
    assert {line["prompt"] for line in lines} == {"four views of one thing", "four photos"}
