"""Tiny bases and diffusers' pipelines of them, made once per session."""

from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline, StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline

from inpaint.models.base import Base, load_base
from tests.tiny import tiny_sd, tiny_sd_inpaint, tiny_sdxl_inpaint

MAKERS: dict[str, Callable[[Path], Path]] = {
    "sd9": tiny_sd_inpaint,
    "sd4": tiny_sd,
    "sdxl9": tiny_sdxl_inpaint,
}


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp("tiny") / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="session")
def tiny_bases(tiny_folders: dict[str, Path]) -> dict[str, Base]:
    return {name: load_base(folder) for name, folder in tiny_folders.items()}


@pytest.fixture(scope="session")
def pipelines(tiny_folders: dict[str, Path]) -> dict[str, DiffusionPipeline]:
    """Inpaint pipelines; their schedulers may be replaced."""
    found = {}
    for name, folder in tiny_folders.items():
        kind = StableDiffusionXLInpaintPipeline if "xl" in name else StableDiffusionInpaintPipeline
        rest = {"add_watermarker": False} if "xl" in name else {"safety_checker": None}
        found[name] = kind.from_pretrained(folder, **rest)
        found[name].set_progress_bar_config(disable=True)
    return found
