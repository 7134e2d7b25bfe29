"""Backbones, made once per session."""

import pytest

from inpaint.evaluate.backbones import Backbones
from tests.unit.evaluate.backbones import tiny_backbones


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Backbones:
    return tiny_backbones(tmp_path_factory.mktemp("backbones"))
