"""Requests to paint."""

from dataclasses import fields

import numpy as np

from inpaint.paint.request import PaintRequest, SamplingSettings
from tests.tiny import SIZE

_SAMPLING = {field.name for field in fields(SamplingSettings)}


def request_with(**settings: object) -> PaintRequest:
    """A request from its own fields and those of its sampling settings."""
    sampling = {name: settings.pop(name) for name in _SAMPLING & settings.keys()}
    return PaintRequest(sampling=SamplingSettings(**sampling), **settings)  # type: ignore[arg-type]


def request(seed: int = 0, height: int = SIZE, width: int = SIZE, **settings: object) -> PaintRequest:
    """A noisy image with a ragged hole; five steps."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    hole = np.zeros((height, width), dtype=bool)
    hole[height // 4 : -height // 8, width // 8 : -width // 3] = True
    hole ^= random.random((height, width)) < 0.05
    defaults = {
        "prompt": "a red wood box",
        "seed": seed,
        "steps": 5,
        "guidance_scale": 4.0,
        "image": image,
        "hole": hole,
    }
    return request_with(**{**defaults, **settings})
