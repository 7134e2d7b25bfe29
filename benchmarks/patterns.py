"""Periodic pictures: stripes, checks, dots, rings, bricks at random phase, period, angle and colours.

What lies in a hole follows from what is around it, but only for who sees the period: a fill that continues edges or
smooths (Telea, Navier-Stokes, biharmonic) cannot know it. A picture is a pure function of (seed, index).
Coordinates are in pixels of the picture, shapes H W; a pattern is a share of the second colour in [0, 1].
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from inpaint.errors import InpaintError
from inpaint.randomness import generator

Array = np.ndarray
SUPERSAMPLING = 3
PERIODS = (5.0, 11.0)
"""Shortest and longest period in pixels of a picture of 32; longer in proportion for larger ones."""
LEAST_CONTRAST = 0.35
"""Between the two colours of a picture: root mean square over the channels, of 1."""


def _wave(x: Array, period: float, share: float) -> Array:
    """1 over `share` of each period, else 0."""
    return ((x / period) % 1.0 < share).astype(np.float32)


def stripes(rng: np.random.Generator, x: Array, y: Array, period: float) -> Array:
    """Parallel bands."""
    return _wave(x, period, rng.uniform(0.35, 0.65))


def checks(rng: np.random.Generator, x: Array, y: Array, period: float) -> Array:
    """A chessboard; its fields are rectangles."""
    aspect = rng.uniform(0.8, 1.25)
    return np.abs(_wave(x, period * 1.3, 0.5) - _wave(y, period * 1.3 * aspect, 0.5))


def dots(rng: np.random.Generator, x: Array, y: Array, period: float) -> Array:
    """Discs on a square grid."""
    radius = rng.uniform(0.26, 0.4)
    u, v = (x / period) % 1.0 - 0.5, (y / period) % 1.0 - 0.5
    return (np.hypot(u, v) < radius).astype(np.float32)


def rings(rng: np.random.Generator, x: Array, y: Array, period: float) -> Array:
    """Circles around one centre, which may lie outside."""
    side = float(np.ptp(x))
    centre_x, centre_y = rng.uniform(-0.3, 0.3, 2) * side
    return _wave(np.hypot(x - centre_x, y - centre_y) + rng.uniform(0, period), period, rng.uniform(0.4, 0.6))


def bricks(rng: np.random.Generator, x: Array, y: Array, period: float) -> Array:
    """Rows of bricks with joints, every other row moved by half a brick."""
    joint = rng.uniform(0.18, 0.28)
    row = np.floor(y / period)
    u = (x / (2 * period) + 0.5 * (row % 2)) % 1.0
    return ((u < joint / 2) | ((y / period) % 1.0 < joint)).astype(np.float32)


PATTERNS: dict[str, Callable[[np.random.Generator, Array, Array, float], Array]] = {
    pattern.__name__: pattern for pattern in (stripes, checks, dots, rings, bricks)
}


def render_pattern(seed: int, index: int, size: int = 32) -> tuple[Array, str]:
    """Picture number `index` of the set `seed`, uint8 `size` x `size` x 3, and the name of its pattern.

    Names come in turn, so that any run of indices has as many of each.
    """
    if size < 16:
        raise InpaintError(f"size {size}: a pattern needs at least 16 pixels to repeat in")
    name = tuple(PATTERNS)[index % len(PATTERNS)]
    rng = generator(seed, "pattern", index)
    while True:
        first, second = rng.uniform(0, 1, (2, 3)).astype(np.float32)
        if np.sqrt(np.mean((first - second) ** 2)) >= LEAST_CONTRAST:
            break
    period = rng.uniform(*PERIODS) * size / 32
    angle, (right, down) = rng.uniform(0, np.pi), rng.uniform(0, 4 * period, 2)
    line = ((np.arange(size * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - size / 2).astype(np.float32)
    u, v = np.meshgrid(line, line)
    x, y = u * np.cos(angle) + v * np.sin(angle) + right, v * np.cos(angle) - u * np.sin(angle) + down
    if name == "rings":
        x, y = x - right, y - down
    share = PATTERNS[name](rng, x, y, period)
    share = share.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING).mean((1, 3))[..., None]
    return np.rint(255 * (first + (second - first) * share)).astype(np.uint8), name


def write_patterns(folder: str | Path, *, seed: int, count: int, size: int = 32) -> Path:
    """Write `count` pictures as `folder/NAME/INDEX.png`, one folder per pattern; returns `folder`."""
    if count < 1:
        raise InpaintError(f"count {count}: give at least 1")
    for name in PATTERNS:
        (Path(folder) / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image, name = render_pattern(seed, index, size)
        Image.fromarray(image).save(Path(folder) / name / f"{index:07d}.png", compress_level=1)
    return Path(folder)
