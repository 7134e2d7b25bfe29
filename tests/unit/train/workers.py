"""What the workers of the engine's tests run: a module of its own, so that spawned processes can import it."""

import os
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from inpaint.train.ema import MovingAverage
from inpaint.train.engine import ZeroEngine
from inpaint.train.objective import Batch, ParameterGroup
from inpaint.train.settings import TrainSettings

STEPS = 6
HALF = 3


class Tiny(nn.Module):
    """Two trained layers behind a frozen one, in two groups; one size that no world size divides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(4, 8).requires_grad_(False)
        self.first = nn.Linear(8, 7)
        self.second = nn.Linear(7, 1)

    def groups(self) -> list[ParameterGroup]:
        layers = {"first": (1e-2, self.first), "second": (3e-2, self.second)}
        return [
            ParameterGroup(name, rate, {f"{name}.{n}": p for n, p in layer.named_parameters()})
            for name, (rate, layer) in layers.items()
        ]

    def forward(self, batch: Batch) -> Tensor:
        x = torch.tensor(batch["x"])
        return (self.second(torch.tanh(self.first(self.frozen(x))))[:, 0] - x.sum(1)) ** 2


def settings_of(workers: int, stage: int) -> TrainSettings:
    return TrainSettings(workers=workers, micro_batch=4, global_batch=16, zero_stage=stage, max_grad_norm=0.5)


def micro_batches(step: int, settings: TrainSettings, rank: int) -> list[Batch]:
    """This rank's part of a step's global batch, which does not depend on the number of workers."""
    rng = np.random.default_rng(step)
    x = rng.standard_normal((settings.global_batch, 4)).astype(np.float32)
    weight = rng.random(settings.global_batch).astype(np.float32)
    blocks = range(rank, settings.global_batch // settings.micro_batch, settings.workers)
    parts = [slice(block * settings.micro_batch, (block + 1) * settings.micro_batch) for block in blocks]
    return [{"x": x[part], "weight": weight[part]} for part in parts]


def run(rank: int, workers: int, folder: str) -> None:
    """All stages: train on, and train on from the gathered state of the middle; rank 0 saves what each ended with."""
    os.environ["LOCAL_RANK"] = str(rank)  # DeepSpeed asks for it; Ray Train sets it
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    for stage in range(4):
        settings = settings_of(workers, stage)
        engine = ZeroEngine(Tiny(), settings, torch.device("cpu"))
        ema = MovingAverage(engine, halflife=40)
        middle = None
        for step in range(STEPS):
            if step == HALF:
                middle = engine.gather()
            engine.train_step(micro_batches(step, settings, rank), lr_scale=1 - step / STEPS)
            ema.update(engine, settings.global_batch)
        assert middle is not None
        resumed = ZeroEngine(Tiny(), settings, torch.device("cpu"))
        resumed.load(middle, steps=HALF)
        for step in range(HALF, STEPS):
            resumed.train_step(micro_batches(step, settings, rank), lr_scale=1 - step / STEPS)
        states = {"whole": engine.gather(), "resumed": resumed.gather(), "ema": {"ema": ema.average}}
        if rank == 0:
            flat = {
                f"{run}/{kind}/{n}": t
                for run, s in states.items()
                for kind, named in s.items()
                for n, t in named.items()
            }
            save_file(flat, Path(folder) / f"{workers}-{stage}.safetensors")
    dist.barrier()
    dist.destroy_process_group()
