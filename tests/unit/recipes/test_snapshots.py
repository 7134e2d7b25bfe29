"""Each preset as text: whoever changes what a run does sees it as a difference here.

Write them anew with: python -m tests.unit.recipes.test_snapshots
"""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from inpaint.diffusion.unet import PRESETS
from inpaint.recipes import ddpm
from inpaint.recipes.category_lora import CategoryLora
from inpaint.recipes.controlnet import PRESETS as CONTROL_PRESETS
from inpaint.recipes.controlnet import TrainControlNet
from inpaint.recipes.demo import Demo
from inpaint.recipes.dreambooth import Subject
from inpaint.recipes.dreambooth_training import TrainDreambooth
from inpaint.recipes.latent import LatentRecipe
from inpaint.recipes.lora import LORA_PRESETS
from inpaint.recipes.panel_lora import TrainPanelLora
from inpaint.recipes.photoshoot_lora import TrainPhotoshootLora
from inpaint.recipes.toy_base import PretrainToy, ToyVae
from inpaint.recipes.toy_vision import PretrainToyVision, ToyBlip, ToyClipSeg
from inpaint.train.recipe import Recipe
from inpaint.train.settings import plain

FOLDER = Path(__file__).parent / "snapshots"
RECIPES: dict[str, Any] = {
    **{f"category_lora-{name}": CategoryLora.of_preset(name, data="DATA", output="OUT") for name in LORA_PRESETS},
    **{f"controlnet-{n}": TrainControlNet.of_preset(n, data="DATA", output="OUT") for n in CONTROL_PRESETS},
    **{f"ddpm-{size}": ddpm.preset_of(size, data="DATA", output="OUT") for size in PRESETS},
    "panel_lora": TrainPanelLora(data_dir="DATA", output_dir="OUT").recipe(),
    "dreambooth": TrainDreambooth(instance_dir="DATA", output_dir="OUT").recipe(
        [Subject(name="s", prompt="a photo of sks dog", class_prompt="a photo of a dog", class_folder="CLASS")]
    ),
    "photoshoot_lora": TrainPhotoshootLora(data_dir="DATA", output_dir="OUT", tag="ppzocketv2").recipe(),
    "pretrain_toy": PretrainToy(output="OUT"),
    "pretrain_toy-sdxl": PretrainToy.of_architecture("sdxl", output="OUT"),
    "toy_vae": ToyVae(data="DATA", output="OUT", learning_rate=PretrainToy.vae_learning_rate, train=PretrainToy.vae),
    "pretrain_toy_vision": PretrainToyVision(output="OUT"),
    "toy_blip": ToyBlip(data="DATA", output="OUT", learning_rate=PretrainToyVision.blip_learning_rate),
    "toy_clipseg": ToyClipSeg(
        data="DATA", output="OUT", learning_rate=PretrainToyVision.clipseg_learning_rate, captioner="BLIP"
    ),
    "demo": Demo(),
}


def text_of(config: Any) -> str:
    """One line per setting, and how rows are read; `may change` marks those that a resumed run may have otherwise."""
    values, fixed = _leaves(plain(config)), _leaves(plain(config, fixed_only=True))
    lines = [f"{name} = {value!r}{'' if name in fixed else '    # may change'}\n" for name, value in values.items()]
    if isinstance(config, LatentRecipe):
        config = replace(config, resolution=config.resolution or 512)  # the base's own
    if isinstance(config, Recipe):
        read = config.read_settings()
        lines += [f"read.{field.name} = {getattr(read, field.name)!r}\n" for field in fields(read)]
    return "".join(lines)


def _leaves(value: Any, where: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {where: value}
    return {n: v for name, item in value.items() for n, v in _leaves(item, f"{where}.{name}".lstrip(".")).items()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_preset_is_what_it_was(name: str) -> None:
    assert text_of(RECIPES[name]) == (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def test_there_is_no_snapshot_of_what_is_gone() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == RECIPES.keys()


if __name__ == "__main__":
    for name, config in RECIPES.items():
        (FOLDER / f"{name}.txt").write_text(text_of(config), encoding="utf-8")
