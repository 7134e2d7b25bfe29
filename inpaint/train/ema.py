"""Moving average of the trained parameters, with a half-life in samples, so that it does not depend on the batch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from inpaint.train.engine import ZeroEngine


class MovingAverage:
    """average <- d * average + (1 - d) * parameters with d = 0.5 ** (samples / halflife) (Karras et al. 2023, eq. 121).

    The half-life is capped at a tenth of the samples seen so far, so that the start is forgotten.
    """

    def __init__(self, engine: ZeroEngine, halflife: float) -> None:
        self.halflife = halflife
        self.average: dict[str, Tensor] = {}
        self._engine = engine
        self.load(engine.gather()["trained"], samples=0)

    def load(self, average: dict[str, Tensor], samples: int) -> None:
        """Continue from a checkpoint after `samples` samples."""
        self.samples = samples
        self.average = {name: tensor.to(self._engine.device, copy=True) for name, tensor in average.items()}

    @torch.no_grad()
    def update(self, batch: int) -> None:
        """Take in the parameters after a step over `batch` samples. Collective."""
        self.samples += batch
        decay = 0.5 ** (batch / max(min(self.halflife, self.samples / 10), 1e-8))
        with self._engine.whole(list(self._engine.parameters.values())):
            for name, parameter in self._engine.parameters.items():
                self.average[name].lerp_(parameter.detach().float(), 1 - decay)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within, the module computes with the average. Collective."""
        engine = self._engine
        with engine.whole(list(engine.parameters.values())):
            trained = {name: p.detach().clone() for name, p in engine.parameters.items()}
        engine.show(self.average)
        try:
            yield
        finally:
            engine.show(trained)
