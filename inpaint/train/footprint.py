"""What a process takes of memory that trains adapters together: measured by steps of one adapter, in a process that
does nothing else, so that kernels, libraries and what is encoded on the way are in it; what is kept for each parameter
is counted.
"""

import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from inpaint.train.alone import first_sample
from inpaint.train.settings import MOMENTS
from inpaint.train.trainer import Training

HEADROOM = 1.2
"""What is planned for, over what was found."""
_FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that a process takes: of its GPU where it has one, else of its machine."""

    loading: int
    """At most, until it can train."""
    base: int
    """While it trains, beside its adapters."""
    adapter: int
    """Of each adapter that it trains at once."""
    device: int
    """That the GPU has; 0: it has none."""

    def of(self, adapters: int) -> float:
        """What is planned for a process of so many."""
        return HEADROOM * max(self.loading, self.base + adapters * self.adapter)


def footprint_of(training: Training, device: torch.device) -> Footprint:
    """What this process takes of memory if it trains adapters such as this one.

    Raises:
        InpaintError: its base cannot be loaded.
        OutOfMemoryError: torch's, where a GPU does not hold a step.
    """
    recipe, settings, meter = training.recipe, training.recipe.train, _Meter(device)
    sample, micro_batch = first_sample(training), settings.layout(1).micro_batch
    objective = recipe.objective(device)
    assert isinstance(objective, nn.Module), objective
    objective.train()
    loading, several = meter.peak(), max(2, micro_batch)

    def step(rows: int) -> int:
        meter.reset()
        objective({name: np.repeat(values, rows, axis=0) for name, values in sample.items()}).sum().backward()
        return meter.peak()

    step(1)  # what only a first step allocates is the base's affair
    one, more = step(1), step(several)
    row = max(0, more - one) // (several - 1)
    trained = sum(p.numel() for group in objective.groups() for p in group.parameters.values())
    # Parameters and gradients, each adapter's own and as they are stacked; what the optimizer keeps; the average.
    copies = 4 + len(MOMENTS.get(settings.optimizer, ())) + (settings.ema_halflife is not None)
    adapter = micro_batch * row + copies * _FLOAT * trained
    if not meter.there:
        # Samples lie in the machine's memory: those of a step, of the next micro-batch and of the validation.
        waiting = settings.global_batch + micro_batch + recipe.validation.samples
        adapter += waiting * sum(values.nbytes for values in sample.values())
    return Footprint(loading=loading, base=max(0, one - row), adapter=adapter, device=meter.there)


class _Meter:
    """The most memory that this process has taken, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device if device.type == "cuda" else None
        self.there = 0 if self._gpu is None else torch.cuda.get_device_properties(self._gpu).total_memory

    def reset(self) -> None:
        """Forget what was before; where the system does not know how, the most of all stays the most."""
        if self._gpu is not None:
            torch.cuda.reset_peak_memory_stats(self._gpu)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Since then. On a GPU with what lies outside torch's own memory, such as the context."""
        if self._gpu is None:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        free, there = torch.cuda.mem_get_info(self._gpu)
        return there - free - torch.cuda.memory_reserved(self._gpu) + torch.cuda.max_memory_allocated(self._gpu)
