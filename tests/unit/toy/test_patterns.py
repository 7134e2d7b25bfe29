"""Patterns: periodic, distinct, a function of (seed, index)."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.patterns import LEAST_CONTRAST, PATTERNS, render_pattern, write_patterns
from inpaint.errors import InpaintError


def test_a_pattern_is_a_function_of_seed_and_index() -> None:
    assert np.array_equal(render_pattern(1, 7)[0], render_pattern(1, 7)[0])
    assert not np.array_equal(render_pattern(1, 7)[0], render_pattern(1, 12)[0])
    assert not np.array_equal(render_pattern(1, 7)[0], render_pattern(2, 7)[0])


@pytest.mark.parametrize("index", range(10))
def test_a_pattern_has_two_colours_that_can_be_told_apart(index: int) -> None:
    image, name = render_pattern(3, index)
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    assert name == tuple(PATTERNS)[index % 5]
    extent = image.reshape(-1, 3).astype(float) / 255
    assert np.sqrt(np.mean((extent.max(0) - extent.min(0)) ** 2)) >= 0.9 * LEAST_CONTRAST


@pytest.mark.parametrize("name", sorted(set(PATTERNS) - {"rings"}))
def test_a_pattern_repeats(name: str) -> None:
    """Some shift by up to a quarter of the picture brings most of it back; rings do not repeat by shifts."""
    for index in range(tuple(PATTERNS).index(name), 40, 5):
        image = render_pattern(4, index, 96)[0].astype(float)
        image = (image - image.mean((0, 1))) / 255
        spectrum = np.abs(np.fft.fft2(image[..., np.argmax(image.std((0, 1)))])) ** 2
        peaks = np.sort(spectrum.ravel())[::-1]
        assert peaks[: 5 * 40].sum() >= 0.6 * peaks.sum(), "its energy is not in a few frequencies"


def test_a_folder_per_pattern(tmp_path: Path) -> None:
    folder = write_patterns(tmp_path, seed=0, count=11)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert len(files) == 11
    assert {name.split("/")[0] for name in files} == set(PATTERNS)
    assert np.array_equal(np.asarray(Image.open(folder / "stripes" / "0000005.png")), render_pattern(0, 5)[0])
    with pytest.raises(InpaintError):
        write_patterns(tmp_path, seed=0, count=0)
