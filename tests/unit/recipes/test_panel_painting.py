"""`ray_jobs.paint_panels`: one composite; its settings, what is refused, and that nothing but the panels changes."""

from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

from inpaint.errors import BadRow, InpaintError
from inpaint.recipes.panel_painting import PaintPanels, paint_panels
from tests.tiny import tiny_sdxl_inpaint

ONE = {"input_image": "a.png", "base_model": "B"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_sdxl_inpaint(tmp_path_factory.mktemp("tiny") / "sdxl9"))


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    """Panels of uneven size with gutters of 3 pixels, on a border of 2."""
    image = np.random.default_rng(0).integers(0, 256, (75, 71, 3)).astype(np.uint8)
    image[:2] = image[-2:] = image[:, :2] = image[:, -2:] = image[36:39] = image[:, 33:36] = 255
    Image.fromarray(image).save(tmp_path / "sheet.png")
    return tmp_path / "sheet.png"


def array(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_its_settings_and_their_defaults() -> None:
    flags = "--lora_path L --input-image a.png --prompt p --panels-to-inpaint 1 3 --use_gradient_mask --seed 4"
    given = tyro.cli(PaintPanels, args=flags.split())
    assert given == PaintPanels(
        lora_path="L", input_image="a.png", prompt="p", panels_to_inpaint=(1, 3), use_gradient_mask=True, seed=4
    )
    defaults = PaintPanels(**ONE)
    assert (defaults.panels_to_inpaint, defaults.output_dir, defaults.num_images) == ((2, 3), "inference_output", 1)
    sampling = defaults.settings(0).sampling
    assert (sampling.steps, sampling.guidance_scale, sampling.strength, sampling.feather) == (50, 7.5, 1.0, 0)
    assert given.settings(4).sampling.feather == 20


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_image": None}, "give --input-image"),
        ({"data": "d"}, "give --input-image"),
        ({"base_model": None}, "give --lora-path"),
        ({"panels_to_inpaint": (0, 1, 2, 3)}, "leave one to be seen"),
        ({"panels_to_inpaint": (4,)}, "panel 4: a grid of 2x2 has the panels 0 to 3"),
        ({"input_image": None, "data": "d", "num_images": 2}, "--num-images and --save-comparison"),
    ],
)
def test_what_is_refused_before_any_work(changed: dict[str, object], message: str) -> None:
    with pytest.raises(InpaintError, match=message):
        PaintPanels(**{**ONE, **changed})


def test_panels_are_painted_and_all_else_comes_back_bit_for_bit(base: str, sheet: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = PaintPanels(
        input_image=str(sheet),
        base_model=base,
        output_dir=str(out),
        panels_to_inpaint=(1, 2),
        num_inference_steps=2,
        num_images=2,
        seed=5,
        use_gradient_mask=True,
        gradient_width=6,
        save_comparison=True,
    )
    assert "(seed 5)" in paint_panels(config)
    assert sorted(path.name for path in out.iterdir()) == [
        *("sheet_0.png", "sheet_0_comparison.png", "sheet_1.png", "sheet_1_comparison.png")
    ]
    before, first, second = array(sheet), array(out / "sheet_0.png"), array(out / "sheet_1.png")
    assert first.shape == before.shape and (first != second).any()
    painted = np.zeros(before.shape[:2], bool)
    painted[2:36, 36:69] = painted[39:73, 2:33] = True
    for result in (first, second):
        changed = (result != before).any(-1)
        assert not changed[~painted].any() and changed[painted].mean() > 0.8
    # The transition is inside: a pixel at a panel's edge is nearer to what was there than one in its middle.
    difference = np.abs(first.astype(int) - before)
    assert difference[2:36, 36].mean() < 0.5 * difference[15:25, 48:58].mean()


def test_a_composite_of_another_grid_is_refused(base: str, sheet: Path, tmp_path: Path) -> None:
    config = PaintPanels(input_image=str(sheet), base_model=base, output_dir=str(tmp_path / "out"), grid="3x3")
    with pytest.raises(BadRow, match="its gutters make 2 rows"):
        paint_panels(config)
