"""Each preset as text: whoever changes what a run does sees it as a difference here.

Write them anew with: python -m tests.unit.recipes.test_snapshots
"""

from pathlib import Path
from typing import Any

import pytest

from inpaint.diffusion.unet import PRESETS
from inpaint.recipes import category_lora, ddpm
from inpaint.recipes.demo import Demo
from inpaint.recipes.toy_base import PretrainToy
from inpaint.train.settings import plain

FOLDER = Path(__file__).parent / "snapshots"
RECIPES: dict[str, Any] = {
    **{f"category_lora-{n}": category_lora.preset_of(n, data="DATA", output="OUT") for n in ("toy", "sd15", "sdxl")},
    **{f"ddpm-{size}": ddpm.preset_of(size, data="DATA", output="OUT") for size in PRESETS},
    "pretrain_toy": PretrainToy(output="OUT"),
    "demo": Demo(),
}


def text_of(config: Any) -> str:
    """One line per setting; `fixed` marks those that a resumed run must have again."""
    values, fixed = _leaves(plain(config)), _leaves(plain(config, fixed_only=True))
    return "".join(
        f"{name} = {value!r}{'' if name in fixed else '    # may change'}\n" for name, value in values.items()
    )


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
