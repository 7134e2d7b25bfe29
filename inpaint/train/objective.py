"""The seam between the loop and what is trained: a module that turns a batch into one loss per sample."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from inpaint.train.settings import Precision

AUTOCAST = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}
"""What is computed in; others in fp32."""
Batch = Mapping[str, Any]
"""Of numpy arrays, as `inpaint.data.pipeline` makes them (docs/architecture.md)."""


@dataclass(frozen=True)
class ParameterGroup:
    """Trained parameters that share a learning rate, by the name they have in checkpoints."""

    name: str
    learning_rate: float
    parameters: dict[str, nn.Parameter]


class Objective(Protocol):
    """What the loop trains; an `nn.Module`."""

    def groups(self) -> list[ParameterGroup]:
        """All trained parameters; everything else is frozen."""
        ...

    def __call__(self, batch: Batch) -> Tensor:
        """Loss per sample, shape (B,), float32, not yet weighed."""
        ...


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context to call a trained network in."""
    dtype = AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def to_pixels(images_BHWC: np.ndarray, device: torch.device) -> Tensor:
    """uint8 B H W 3 -> float32 B 3 H W in [-1, 1]."""
    images = torch.tensor(images_BHWC, device=device)
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_hole(hole_BHW: np.ndarray, device: torch.device) -> Tensor:
    """uint8 B H W -> float32 B 1 H W in [0, 1]; 1 = paint."""
    return torch.tensor(hole_BHW, device=device)[:, None].float().div_(255.0)
