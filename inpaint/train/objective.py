"""The seam between the loop and what is trained: a module that turns a micro-batch into one loss per sample."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from inpaint.device import on_device
from inpaint.train.settings import Precision

AUTOCAST = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}
"""What is computed in; others in fp32."""
MicroBatch = Mapping[str, Any]
"""Of numpy arrays, as `inpaint.data.pipeline` makes them (docs/architecture.md)."""


@dataclass(frozen=True)
class ParameterGroup:
    """Trained parameters that share a learning rate, by the name they have in checkpoints."""

    learning_rate: float
    parameters: dict[str, nn.Parameter]


@dataclass(frozen=True, eq=False)
class PaintedSample:
    """What a validation shows of a sample."""

    picture: np.ndarray
    """uint8 H W 3."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What was measured on it, by name."""


class Objective(Protocol):
    """What the loop trains; an `nn.Module`."""

    def groups(self) -> list[ParameterGroup]:
        """All trained parameters; everything else is frozen."""
        ...

    def __call__(self, batch: MicroBatch, *, validating: bool = False) -> Tensor:
        """Loss per sample, shape (B,), float32, not yet weighed.

        Args:
            validating: draw what belongs to the fixed validation set, and nothing at random beside it.
        """
        ...

    def paint(self, batch: MicroBatch, count: int) -> list[PaintedSample]:
        """Each of the first `count` samples, as the model stands."""
        ...


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context to call a trained network in."""
    dtype = AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


class RowDropout(nn.Module):
    """Dropout of which each row's is a function of (seed, layer, position): of no batch, so of no number of workers.

    It is the same where a forward is computed again.
    """

    def __init__(self, p: float, key: str, positions: list[int]) -> None:
        super().__init__()
        self.p, self.key, self.positions = p, key, positions

    def forward(self, x_B: Tensor) -> Tensor:
        """B x ... -> the same shape."""
        if not self.training:
            return x_B
        assert len(x_B) == len(self.positions), f"{len(x_B)} rows for positions {self.positions}"
        kept_B, draws = torch.empty_like(x_B, dtype=torch.float32), torch.Generator(x_B.device)
        for kept, position in zip(kept_B, self.positions, strict=True):
            draws.manual_seed(int.from_bytes(blake2b(f"{self.key}/{position}".encode(), digest_size=7).digest()))
            kept.bernoulli_(1 - self.p, generator=draws)
        return x_B * (kept_B / (1 - self.p)).to(x_B.dtype)


def by_row(module: nn.Module, seed: int) -> list[int]:
    """Lets all dropout within a module be by row, in place; returns the list to be filled with a batch's positions."""
    positions: list[int] = []
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Dropout) and layer.p > 0:
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, RowDropout(layer.p, f"{seed}/{name}", positions))
    return positions


def to_pixels(images_BHWC: np.ndarray, device: torch.device) -> Tensor:
    """uint8 B H W 3 -> float32 B 3 H W in [-1, 1]."""
    return on_device(images_BHWC, device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_hole(hole_BHW: np.ndarray, device: torch.device) -> Tensor:
    """uint8 B H W -> float32 B 1 H W in [0, 1]; 1 = paint."""
    return on_device(hole_BHW, device)[:, None].float().div_(255.0)
