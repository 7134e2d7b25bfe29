"""Tiny models, saved once, and photos of unequal sizes."""

from pathlib import Path

import numpy as np
import pytest

from tests.tiny_vision import tiny_blip, tiny_clipseg


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
