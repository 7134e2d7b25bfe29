"""Tiny bases on disk, made once per session; tests that change files copy them first."""

from pathlib import Path

import pytest

from tests.tiny import tiny_sd_inpaint, tiny_sdxl_inpaint


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_inpaint(tmp_path_factory.mktemp("bases") / "sd")


@pytest.fixture(scope="session")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl_inpaint(tmp_path_factory.mktemp("bases") / "xl")
