"""Requests to paint, and what diffusers paints of them."""

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel

from inpaint.evaluate.parity import paint_with
from inpaint.models.base import Base
from inpaint.models.controlnet import new_controlnet
from inpaint.paint.request import Control, PaintRequest, SamplingSettings
from tests.schedulers import diffusers_scheduler
from tests.tiny import SIZE

TOLERANCE = 1e-3
"""Between our pictures and those of diffusers, in [0, 1]."""
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


def controlnet_of(base: Base) -> ControlNetModel:
    """Random also where a new one is zero and adds nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = new_controlnet(base)
        for parameter in net.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def control(seed: int = 0, scale: float = 1.0, height: int = SIZE, width: int = SIZE) -> Control:
    image = np.random.default_rng(100 + seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Control(image=image, scale=scale)


def painted_by_diffusers(pipeline: Any, wanted: PaintRequest, **more: object) -> np.ndarray:
    """float32 in [0, 1], before paste-back, with the base's own schedule."""
    own = pipeline.scheduler
    pipeline.scheduler = diffusers_scheduler(own.config, wanted.sampling.sampler, wanted.sampling.schedule)
    try:
        return paint_with(pipeline, wanted, height=SIZE, width=SIZE, **more)
    finally:
        pipeline.scheduler = own
