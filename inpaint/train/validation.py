"""Validation: a fixed set of samples with their holes, timesteps and noise, whose loss says how a run goes.

The loss of a set is the same number for any number of workers (but for rounding), for each sample's is a function of
its position in the set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from inpaint.errors import InpaintError
from inpaint.train.engine import ZeroEngine
from inpaint.train.objective import MicroBatch


@dataclass(frozen=True)
class ValidationSet:
    """This worker's part of the set, in memory, and what is done with it."""

    batches: Sequence[MicroBatch]
    every: int
    """Samples between validations."""
    pictures: int
    """Samples that the first worker paints."""
    on_pictures: Callable[[int, list[np.ndarray]], None]
    """Called on the first rank with (samples trained on, pictures)."""

    def run(self, engine: ZeroEngine, samples: int) -> float:
        """The mean loss of the set, of what would be exported. Collective.

        Raises:
            InpaintError: no row of it can be read any more.
        """
        with engine.evaluating():
            total = torch.zeros(2, dtype=torch.float64, device=engine.device)
            for batch in self.batches:
                total[0] += engine.validation_loss(batch)
                total[1] += float(batch["weight"].sum())
            dist.all_reduce(total)
            self._paint(engine, samples)
        if not total[1]:
            raise InpaintError("no row of the validation can be read: restore its files, or set validation.samples 0")
        return float(total[0] / total[1])

    def _paint(self, engine: ZeroEngine, samples: int) -> None:
        # Under ZeRO 3 each forward gathers the parameters of all ranks: all of them paint, each its own samples.
        is_first, is_sharded = dist.get_rank() == 0, engine.settings.zero_stage == 3
        if not (self.pictures and self.batches and (is_first or is_sharded)):
            return
        painted: list[np.ndarray] = []
        for batch in self.batches:
            if len(painted) < self.pictures:
                painted += engine.objective.paint(batch, self.pictures - len(painted))
        if is_first:
            self.on_pictures(samples, painted)
