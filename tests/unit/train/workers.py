"""What the workers of the engine's tests run: a module of its own, so that spawned processes can import it."""

import os
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from inpaint.data.plan import StepLayout
from inpaint.train.engine import ZeroEngine
from inpaint.train.objective import MicroBatch, ParameterGroup
from inpaint.train.settings import TrainSettings

STEPS = 6
HALF = 3
GLOBAL_BATCH = 16


class Tiny(nn.Module):
    """Two trained layers behind a frozen one, in two groups; one size that no world size divides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(4, 8).requires_grad_(False)
        self.first = nn.Linear(8, 7)
        self.second = nn.Linear(7, 1)

    def groups(self) -> list[ParameterGroup]:
        rates = {"first": 1e-2, "second": 3e-2}
        return [
            ParameterGroup(rate, {f"{name}.{n}": p for n, p in getattr(self, name).named_parameters()})
            for name, rate in rates.items()
        ]

    def forward(self, batch: MicroBatch, *, validating: bool = False) -> Tensor:
        x = torch.tensor(batch["x"])
        return (self.second(torch.tanh(self.first(self.frozen(x))))[:, 0] - x.sum(1)) ** 2


def settings_of(stage: int) -> TrainSettings:
    return TrainSettings(
        max_micro_batch=4, global_batch=GLOBAL_BATCH, zero_stage=stage, max_grad_norm=0.5, ema_halflife=40
    )


def layout_of(workers: int) -> StepLayout:
    return StepLayout(global_batch=GLOBAL_BATCH, max_micro_batch=4, workers=workers)


def micro_batches(step: int, layout: StepLayout, rank: int) -> list[MicroBatch]:
    """This rank's part of a step's global batch, which does not depend on the number of workers; what is padding
    weighs nothing, whatever stands in it."""
    rng = np.random.default_rng(step)
    x = rng.standard_normal((GLOBAL_BATCH, 4)).astype(np.float32)
    weight = rng.random(GLOBAL_BATCH).astype(np.float32)
    return [
        {
            "x": np.where(slots[:, None] < 0, 7.0, x[slots]).astype(np.float32),
            "weight": np.where(slots < 0, 0, weight[slots]),
        }
        for slots in layout.positions(0, rank)
    ]


def run(rank: int, workers: int, folder: str) -> None:
    """All stages: train on, and train on from the gathered state of the middle; rank 0 saves what each ended with."""
    os.environ["LOCAL_RANK"] = str(rank)  # DeepSpeed asks for it; Ray Train sets it
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    layout = layout_of(workers)
    for stage in range(4):
        settings = settings_of(stage)
        engine = ZeroEngine(Tiny(), settings, layout, torch.device("cpu"))
        middle = None
        for step in range(STEPS):
            if step == HALF:
                middle = engine.gather()
            engine.train_step(micro_batches(step, layout, rank), lr_scale=1 - step / STEPS)
        assert middle is not None
        resumed = ZeroEngine(Tiny(), settings, layout, torch.device("cpu"))
        resumed.load(middle, steps=HALF)
        for step in range(HALF, STEPS):
            resumed.train_step(micro_batches(step, layout, rank), lr_scale=1 - step / STEPS)
        with engine.evaluating():
            batches = micro_batches(0, layout, rank)
            losses = torch.stack([engine.validation_loss(batch) for batch in batches]).sum()[None]
            dist.all_reduce(losses)
        states = {"whole": engine.gather(), "resumed": resumed.gather()}
        states["validation"] = {"of the average": {"loss": losses}}
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
