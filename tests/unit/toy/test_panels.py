"""Toy composites: what their panels share, what their captions tell, and what the detectors see in them."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inpaint.paint.batch import PaintSettings, read_models
from inpaint.paint.request import SamplingSettings
from inpaint.serve.apps.paint import SHIPPED_ADAPTERS
from inpaint.toy.catalogue import BACKGROUND_NAMES, COLOUR_NAMES, SHAPE_NAMES, render
from inpaint.toy.detectors import ERROR_SEED, balanced_renders
from inpaint.toy.measure_panels import held_out_composites, paint_hidden
from inpaint.toy.panel_detectors import FRAME, NAMES, PanelDetectors
from inpaint.toy.panels import SHEET_PROMPT, TRAITS, compose, write_mixture, write_sheets


def shared(seed: int, index: int, **settings: tuple[str, ...]) -> set[str]:
    panels = compose(seed, index, 32, **settings).panels
    return {trait for trait in TRAITS if len({getattr(panel, trait) for panel in panels}) == 1}


def test_a_sheet_shows_one_product_in_four_views_on_one_background() -> None:
    composite = compose(3, 5)
    assert shared(3, 5) == set(TRAITS)
    assert composite.image.shape == (128, 128, 3)
    views = [composite.image[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
    assert all((view == panel.image).all() for view, panel in zip(views, composite.panels, strict=True))
    assert len({view.tobytes() for view in views}) == 4
    assert (compose(3, 5).image == composite.image).all()


def test_panels_share_what_they_are_asked_to_and_else_only_by_chance() -> None:
    assert all({"colour"} <= shared(0, index, common=("colour",)) for index in range(20))
    assert sum("shape" in shared(0, index, common=("colour",)) for index in range(20)) <= 1
    assert sum(bool(shared(0, index, common=())) for index in range(20)) <= 1


def test_the_captions_of_sheets_tell_nothing(tmp_path: Path) -> None:
    write_sheets(tmp_path, seed=1, count=2, size=32)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("sheet000000.png", "sheet000000.txt", "sheet000001.png", "sheet000001.txt")
    ]
    assert (tmp_path / "sheet000001.txt").read_text() == f"{SHEET_PROMPT}\n"
    assert not {*SHAPE_NAMES, *COLOUR_NAMES, *BACKGROUND_NAMES} & set(SHEET_PROMPT.split())


def test_the_mixture_shows_no_sheet(tmp_path: Path) -> None:
    path = write_mixture(tmp_path, seed=4, count=60, size=32)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60 and rows[0]["output"] == "images/000000.png"
    prompts = [row["prompt"] for row in rows]
    untold = {"four photos", "four photos of one shape and one colour", "four photos of one background"}
    assert untold <= set(prompts)
    told = [prompt for prompt in prompts if prompt.startswith("four") and prompt not in untold]
    assert told and all(prompt.endswith((*COLOUR_NAMES, *BACKGROUND_NAMES)) for prompt in told)
    assert not any("and" in prompt and "background" in prompt for prompt in prompts)
    single = next(n for n, prompt in enumerate(prompts) if not prompt.startswith("four"))
    pictures = [np.asarray(Image.open(tmp_path / row["output"])) for row in rows]
    assert {picture.shape for picture in pictures} == {(64, 64, 3)}
    assert (pictures[single] == render(4, 4 * single, 64).image).all()


@pytest.fixture(scope="module")
def detectors() -> PanelDetectors:
    return PanelDetectors.fit()


def test_the_detectors_know_held_out_panels(detectors: PanelDetectors) -> None:
    clean, soft = detectors.error(count=80), detectors.error(count=80, blur=1.0, brightness=1.05)
    for figures in (clean, soft):
        assert max(figures[trait] for trait in NAMES) <= 0.03
        assert max(figures[f"wrong_{trait}"] for trait in NAMES) <= 0.005


def test_the_background_is_judged_where_no_product_stands() -> None:
    _, _, products = balanced_renders(ERROR_SEED, 200)
    assert not products[:, FRAME].any() and FRAME.mean() > 0.4


def test_what_is_no_panel_of_this_world_is_unclear(detectors: PanelDetectors) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3)).astype(np.uint8)
    grey = np.full((1, 64, 64, 3), 128, np.uint8)
    for names in detectors.see(np.concatenate([noise, grey])).values():
        assert set(names) == {"unclear"}


def test_the_shipped_adapter_paints_what_the_visible_panels_show(detectors: PanelDetectors) -> None:
    sheets = held_out_composites(8)
    prompts = [SHEET_PROMPT] * len(sheets)
    models = read_models(PaintSettings(base="toy-sdxl", adapter=str(SHIPPED_ADAPTERS["toy-sdxl"] / "panels")))
    sampling = SamplingSettings(guidance_scale=6.0)
    painted = paint_hidden(models.painter("cpu", 8), detectors, sheets, prompts, hidden=1, sampling=sampling)
    assert painted.right["product"] >= 0.6 and painted.right["background"] >= 0.6
    assert painted.visible_pixels_changed == 0
