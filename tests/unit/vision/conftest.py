"""Tiny models, saved once, and photos of unequal sizes."""

from pathlib import Path

import numpy as np
import pytest

from tests.tiny_vision import tiny_blip, tiny_clipseg, tiny_grounding_dino, tiny_sam


@pytest.fixture(scope="session")
def clipseg(tmp_path_factory) -> Path:
    return tiny_clipseg(tmp_path_factory.mktemp("clipseg"))


@pytest.fixture(scope="session")
def blip(tmp_path_factory) -> Path:
    return tiny_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((40, 40), (64, 30), (33, 90))]


@pytest.fixture(scope="session")
def grounding_dino(tmp_path_factory) -> Path:
    return tiny_grounding_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="session")
def sam(tmp_path_factory) -> Path:
    return tiny_sam(tmp_path_factory.mktemp("sam"))
