"""Tiny bases, made once per session."""

from collections.abc import Callable
from pathlib import Path

import pytest

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
