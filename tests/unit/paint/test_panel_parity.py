"""An exported panel adapter in unmodified diffusers gives our picture, on both kinds of SDXL."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLInpaintPipeline

from inpaint.data.panels import ChosenPanels
from inpaint.data.rows import SCHEMA, Manifest
from inpaint.models.base import read_base_info
from inpaint.models.lora import LoraSettings
from inpaint.paint.batch import PaintSettings, read_models
from inpaint.paint.request import WHOLE, SamplingSettings
from inpaint.recipes.panel_lora import PanelLora
from inpaint.train.checkpoint import Progress
from inpaint.train.recipe import Trained
from tests.tiny import SIZE, tiny_sdxl_inpaint
from tests.unit.paint.examples import TOLERANCE, painted_by_diffusers


def exported(base: str, folder: Path) -> str:
    """An adapter as training leaves it, with weights that show."""
    recipe = PanelLora(
        data="d",
        output=str(folder),
        base=base,
        revision=read_base_info(base).revision,
        resolution=(SIZE, SIZE),
        lora=LoraSettings(rank=4, alpha=8),
        card_samples=0,
    )
    groups, draws = recipe.objective(torch.device("cpu")).groups(), torch.Generator().manual_seed(0)
    trained = {
        name: torch.randn(parameter.shape, generator=draws) * 0.3
        for group in groups
        for name, parameter in group.parameters.items()
    }
    progress = Progress(samples=4, steps=1, seed=0, manifest="m")
    recipe.export(Trained("panels", trained, progress, 4, Manifest(SCHEMA.empty_table(), (1,))), folder)
    return str(folder)


@pytest.mark.parametrize("channels", [9, 4])
def test_a_panel_adapter_paints_what_it_paints_in_diffusers(channels: int, tmp_path: Path) -> None:
    base = str(tiny_sdxl_inpaint(tmp_path / "base", in_channels=channels))
    adapter = exported(base, tmp_path / "adapter")
    sheet = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    hole = ChosenPanels((1, 2)).hole(sheet)
    sampling = SamplingSettings(steps=5, guidance_scale=4.0, strength=1.0, padding=WHOLE)
    pictures = {}
    for name in (adapter, None):
        models = read_models(PaintSettings(base=base, adapter=name, sampling=sampling))
        wanted = models.request(sheet, hole, models.prompt("four views of a red box", None), seed=3)
        (pictures[name],) = models.painter("cpu", max_batch=1).paint_raw([wanted])
    assert np.abs(pictures[adapter] - pictures[None]).max() > 10 * TOLERANCE, "the adapter does something"
    theirs = StableDiffusionXLInpaintPipeline.from_pretrained(base, add_watermarker=False)
    theirs.set_progress_bar_config(disable=True)
    theirs.load_lora_weights(adapter)
    assert np.abs(pictures[adapter] - painted_by_diffusers(theirs, wanted)).max() <= TOLERANCE
