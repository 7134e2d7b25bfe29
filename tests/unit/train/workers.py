"""What the workers of the engine's tests run: a module of its own, so that their processes can import it."""

import os
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from inpaint.data.plan import StepLayout
from inpaint.train.engine import ZeroEngine
from inpaint.train.objective import MicroBatch, ParameterGroup
from inpaint.train.settings import Offload, Optimizer, Precision, TrainSettings

STEPS = 6
HALF = 3
GLOBAL_BATCH = 16
WIDE = 800
"""Makes a weight large enough for 8-bit moments."""


class Tiny(nn.Module):
    """Two trained layers behind a frozen one, in two groups; one size that no world size divides."""

    def __init__(self, width: int = 7, rates: tuple[float, float] = (1e-2, 3e-2)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(4, 8).requires_grad_(False)
        self.first = nn.Linear(8, width)
        self.second = nn.Linear(width, 1)
        self.rates = rates

    def groups(self) -> list[ParameterGroup]:
        rates = dict(zip(("first", "second"), self.rates, strict=True))
        return [
            ParameterGroup(rate, {f"{name}.{n}": p for n, p in getattr(self, name).named_parameters()})
            for name, rate in rates.items()
        ]

    def forward(self, batch: MicroBatch, *, validating: bool = False) -> Tensor:
        x = torch.tensor(batch["x"])
        hidden = torch.tanh(self.first(self.frozen(x.to(self.frozen.weight.dtype))))
        return (self.second(hidden)[:, 0].float() - x.sum(1)) ** 2


def settings_of(stage: int, **changed: Any) -> TrainSettings:
    settings = TrainSettings(
        max_micro_batch=4, global_batch=GLOBAL_BATCH, zero_stage=stage, max_grad_norm=0.5, ema_halflife=40
    )
    return replace(settings, **changed)


STAGES = {str(stage): settings_of(stage) for stage in range(4)}
# bitsandbytes is not among what the tests need: once it is there, PEFT imports all of it whenever it is imported.
EIGHT = (Optimizer.ADAMW_8BIT,) if find_spec("bitsandbytes") else ()
WHOLE = (Optimizer.ADAFACTOR, Optimizer.PRODIGY, *EIGHT)
VARIANTS = {
    **STAGES,
    "offload 1": settings_of(1, offload=Offload.OPTIMIZER),
    "offload 3": settings_of(3, offload=Offload.PARAMETERS),
    **{f"fp16 {stage}": settings_of(stage, precision=Precision.FP16) for stage in (1, 2, 3)},
    "sgd 2": settings_of(2, optimizer=Optimizer.SGD),
    **{str(optimizer): settings_of(0, optimizer=optimizer) for optimizer in WHOLE},
}


def module_of(settings: TrainSettings) -> Tiny:
    rates = (1.0, 1.0) if settings.optimizer is Optimizer.PRODIGY else (1e-2, 3e-2)
    return Tiny(WIDE if settings.optimizer in WHOLE else 7, rates)


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
    """All variants (with three workers the stages alone): train on, and train on from the gathered state of the middle;
    rank 0 saves what each ended with."""
    os.environ["LOCAL_RANK"] = str(rank)  # DeepSpeed asks for it; Ray Train sets it
    os.environ["DEEPSPEED_LOG_LEVEL"] = "warning"
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True  # slow on CPUs, and the same numbers
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    for name, settings in (VARIANTS if workers < 3 else STAGES).items():
        states = ended(rank, layout_of(workers), settings)
        flat = {
            f"{run}/{kind}/{n}": t for run, s in states.items() for kind, named in s.items() for n, t in named.items()
        }
        if rank == 0:
            save_file(flat, Path(folder) / f"{workers}-{name}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


def ended(rank: int, layout: StepLayout, settings: TrainSettings) -> dict[str, dict[str, dict[str, Tensor]]]:
    """What one run ended with, one that was resumed, and one that was validated."""

    def step_of(engine: ZeroEngine, step: int) -> None:
        engine.train_step(micro_batches(step, layout, rank), lr_scale=1 - step / STEPS)

    engine, middle, steps = ZeroEngine(module_of(settings), settings, layout, torch.device("cpu")), None, [0]
    masters = [engine.gather()["trained"]]
    for step in range(STEPS):
        if step == HALF:
            middle = engine.gather()
        step_of(engine, step)
        steps.append(engine.steps)
        # What the average should be is worked out once.
        masters.append(engine.gather()["trained"] if layout.workers == 1 else masters[0])
    assert middle is not None
    resumed = ZeroEngine(module_of(settings), settings, layout, torch.device("cpu"))
    resumed.load(middle, steps=steps[HALF])
    for step in range(HALF, STEPS):
        step_of(resumed, step)
    with engine.evaluating():
        batches = micro_batches(0, layout, rank)
        losses = torch.stack([engine.validation_loss(batch) for batch in batches]).sum()[None]
        dist.all_reduce(losses)
    states = {"whole": engine.gather(), "resumed": resumed.gather(), "middle": middle}
    for run, its in (("whole", engine), ("resumed", resumed)):
        states[run]["count"] = {"steps": torch.tensor([its.steps])}
    # By the masters after each step that was made.
    average = masters[0]
    for (before, after), master in zip(pairwise(steps), masters[1:], strict=True):
        decay = 0.5 ** (GLOBAL_BATCH / min(40, GLOBAL_BATCH * max(after, 1) / 10)) if after > before else 1.0
        average = {name: decay * value + (1 - decay) * master[name] for name, value in average.items()}
    states["expected"] = {"ema": average, "count": {"steps": torch.tensor(steps)}}
    states["validation"] = {"of the average": {"loss": losses}}
    return states
