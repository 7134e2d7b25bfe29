"""The seam between the loop and what is trained: a module that turns a micro-batch into one loss per sample."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from inpaint.randomness import generator
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

    def paint(self, batch: MicroBatch, count: int) -> list[np.ndarray]:
        """A picture, uint8 H W 3, of each of the first `count` samples, as the model stands."""
        ...


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context to call a trained network in."""
    dtype = AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def seed_dropout(seed: int, batch: MicroBatch) -> None:
    """Dropout is torch's own, keyed by the batch: the same after a resume, at an equal world size."""
    first = max(0, int(batch["position"][0]))
    torch.manual_seed(int(generator(seed, "dropout", first).integers(2**62)))


def on_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """On the device, an array as a copy; to a GPU through pinned memory, so that nothing waits for it."""
    tensor = values if isinstance(values, Tensor) else torch.tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_pixels(images_BHWC: np.ndarray, device: torch.device) -> Tensor:
    """uint8 B H W 3 -> float32 B 3 H W in [-1, 1]."""
    return on_device(images_BHWC, device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_hole(hole_BHW: np.ndarray, device: torch.device) -> Tensor:
    """uint8 B H W -> float32 B 1 H W in [0, 1]; 1 = paint."""
    return on_device(hole_BHW, device)[:, None].float().div_(255.0)
