"""What a GPU would be asked to do, on the real architectures at full size: how much, and nothing that waits for it.

The numbers stand in `gpu_path.txt`; write it anew with `python -m tests.unit.test_gpu_path`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from benchmarks.random_base import build_architecture
from inpaint.diffusion.ddpm import NoiseSettings
from inpaint.diffusion.objective import LossSettings
from inpaint.diffusion.samplers import Sampler
from inpaint.diffusion.unet import MaskedUNet, preset
from inpaint.models.layers import is_trained
from inpaint.models.lora import LoraSettings, inject_lora, lora_parameters
from inpaint.models.low_rank import Packed
from inpaint.models.prompts import add_tokens, token_parameters
from inpaint.serve.engine import torch_executor
from inpaint.serve.engine.adapter_slots import PackedAdapter
from inpaint.serve.engine.scheduler import Job, Outcome
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.engine.side_stream import SideStream
from inpaint.serve.engine.torch_executor import TorchExecutor
from inpaint.train.latent import LatentInpainting
from inpaint.train.objective import ParameterGroup
from inpaint.train.pixel import PixelInpainting
from inpaint.train.settings import Precision
from tests.device_calls import DeviceCalls, counted
from tests.unit.serve.engines import Adapters, order, request

SNAPSHOT = Path(__file__).with_name("gpu_path.txt")
RANKS = (4, 16, 8, 2)


def painting(name: str) -> Iterator[tuple[str, DeviceCalls]]:
    """Four orders with guidance, of four samplers and four adapters, from their photos to their pictures."""
    with patch.object(torch_executor, "SideStream", lambda _: SideStream(torch.device("cpu"))):
        base = build_architecture(name, device="meta", dtype=torch.bfloat16)
        engine = TorchExecutor(base, EngineSettings(slots=len(RANKS)), Adapters().load)
    side, slots = base.info.default_size, engine.runner.slots
    jobs = []
    with counted() as loading:
        for slot, rank in enumerate(RANKS, start=1):
            matrices = {
                prefix: Packed(
                    torch.empty(rank, pool.packed_SRW.shape[2], dtype=base.dtype),
                    frozenset(filter(is_trained, pool.layers)),
                )
                for prefix, pool in slots.pools.items()
            }
            tokens = tuple({"CDP_X": torch.empty(width)} for width in base.info.text_widths)
            slots.put(slot, PackedAdapter(matrices, tokens))
    yield "adapters are loaded", loading
    for slot, sampler in enumerate((Sampler.DDIM, Sampler.EULER, Sampler.EULER_ANCESTRAL, Sampler.LCM), start=1):
        wanted = request(slot, side, side, prompt="CDP_X background", sampler=sampler, guidance_scale=5, steps=3)
        job = Job(order=order(wanted, str(slot)), arrived=0.0, tell=lambda event: None, uses=((slot, 1.0),))
        job.image = engine.read(job.order)
        job.shape = job.image.shape
        jobs.append(job)
    with counted() as joining, torch.no_grad():
        engine.encode(jobs)
    yield "orders are encoded", joining
    with counted() as first, torch.no_grad():
        engine.advance(jobs)
    yield "tick in which they joined", first
    with counted() as tick, torch.no_grad():
        latents_BChw, _ = engine.advance(jobs)
    yield "tick", tick
    with counted() as leaving, torch.no_grad():
        engine.decode([Outcome(job, None, content=x[None]) for job, x in zip(jobs, latents_BChw, strict=True)])
    yield "pictures are decoded", leaving


def training(objective: Callable[[], torch.nn.Module], side: int) -> Iterator[tuple[str, DeviceCalls]]:
    """Loss and gradients of a micro-batch of two."""
    module = objective().train()
    batch = {
        "position": np.arange(2),
        "image": np.zeros((2, side, side, 3), dtype=np.uint8),
        "hole": np.full((2, side, side), 255, dtype=np.uint8),
        "original_size": np.full((2, 2), side, dtype=np.int32),
        "crop_top_left": np.zeros((2, 2), dtype=np.int32),
        "prompt": ["CDP_X background", "CDP_X background, a red box"],
        "label": ["", ""],
    }
    with counted() as step:
        module(batch).sum().backward()
    without = [n for group in module.groups() for n, p in group.parameters.items() if p.grad is None]
    # SDXL reads the last hidden states of neither encoder; the second one's are pooled.
    assert all(n.startswith("text_encoder.text_model.encoder.layers.11.") for n in without), without
    assert not without or module.base.info.is_xl
    yield "forward and backward", step


def latents(name: str) -> LatentInpainting:
    base = build_architecture(name, device="meta")
    inject_lora(base, LoraSettings(rank=8), seed=0)
    add_tokens(base, {"CDP_X": "product"})
    groups = [ParameterGroup(1e-4, lora_parameters(base)), ParameterGroup(1e-3, token_parameters(base))]
    return LatentInpainting(base, groups, seed=0, loss=LossSettings(min_snr_gamma=5.0), precision=Precision.FP32)


def pixels(side: int) -> PixelInpainting:
    with torch.device("meta"):
        unet = MaskedUNet(replace(preset(side), dropout=0.0))  # its generators are CPUs' and GPUs' alone
    settings = {"learning_rate": 1e-4, "seed": 0, "loss": LossSettings(), "precision": Precision.FP32}
    return PixelInpainting(unet, NoiseSettings(), **settings)


CASES: dict[str, Callable[[], Iterator[tuple[str, DeviceCalls]]]] = {
    **{f"{name}, painted": partial(painting, name) for name in ("sd15-inpaint", "sdxl")},
    "sd15-inpaint, trained": partial(training, partial(latents, "sd15-inpaint"), 512),
    "sdxl, trained": partial(training, partial(latents, "sdxl"), 1024),
    "ddpm-128, trained": partial(training, partial(pixels, 128), 128),
}


def line(what: str, calls: DeviceCalls) -> str:
    counts = f"{calls.kernels.total()} kernels, {calls.views} views, {len(calls.copies)} copies from the host"
    return f"{what}: {counts}, {len(calls.waits)} waited for\n"


@pytest.mark.parametrize("name", CASES)
def test_the_device_is_asked_what_it_was(name: str) -> None:
    found = dict(CASES[name]())
    for what, calls in found.items():
        assert not calls.waits, f"the host waits for the device in: {what}"
    if "tick" in found:
        assert not found["tick"].copies
    snapshot = [text for text in SNAPSHOT.read_text(encoding="utf-8").splitlines(True) if text.startswith(name)]
    assert [line(f"{name}, {what}", calls) for what, calls in found.items()] == snapshot


if __name__ == "__main__":
    lines = [line(f"{name}, {what}", calls) for name, case in CASES.items() for what, calls in case()]
    SNAPSHOT.write_text("".join(lines), encoding="utf-8")
