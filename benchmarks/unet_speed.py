"""A training step of the DDPM's masked U-Net beside one of diffusers' `UNet2DModel` (train_step: ddpm-128).

Theirs has its default blocks (attention at all resolutions but the first), its widths chosen for equal parameters, and
gets the same seven channels: noisy image, known pixels, hole. Both sides run in this process, in turn, with the same
batch, autocast, loss and AdamW; our weights lie as the loop keeps them (contiguous), our features in channels_last.
"""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import emit, paired_ratio, progress
from inpaint.cluster import usable_cores
from inpaint.diffusion.unet import MaskedUNet, preset
from inpaint.train.loop import peak_flops

SIZE = 128
THEIR_WIDTHS = (64, 128, 256, 384)
MOST_DIFFERENCE = 0.03
"""Of the parameter counts, as a share."""

Forward = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Side:
    """A network in training."""

    net: nn.Module
    forward: Forward
    optimizer: torch.optim.Optimizer


def measure_unet_speed(*, batch: int | None, steps: int, warmup: int, rounds: int) -> None:
    """Measure and print the JSON line; bf16 on a GPU, fp32 on CPUs, where a tenth of the steps is taken."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        steps, warmup = max(1, steps // 10), max(1, warmup // 5)
    batch = batch or (32 if device.type == "cuda" else 1)
    torch.set_num_threads(usable_cores())
    torch.manual_seed(0)
    before = os.getloadavg()
    ours, theirs = _ours(device), _theirs(device)
    counts = {k: sum(p.numel() for p in side.net.parameters()) for k, side in (("ours", ours), ("theirs", theirs))}
    difference = abs(counts["theirs"] / counts["ours"] - 1)
    assert difference <= MOST_DIFFERENCE, f"not equal parameters: {counts}"
    data = _data(batch, device)
    flops = {name: _flops(side, data, device) for name, side in (("ours", ours), ("theirs", theirs))}
    for name in counts:
        progress(f"{name}: {counts[name] / 1e6:.1f} M parameters, {flops[name] / batch / 1e12:.3f} TFLOP per sample")
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}

    def timed(name: str, side: Side) -> float:
        rates[name].append(_samples_per_s(side, data, device, steps, warmup))
        return rates[name][-1]

    ratio, ratios = paired_ratio(lambda: timed("ours", ours), lambda: timed("theirs", theirs), rounds)
    figures = {"speed_ratio_vs_unet2dmodel": ratio}
    peak = peak_flops(torch.cuda.get_device_name()) if device.type == "cuda" else None
    for name, values in rates.items():
        rate = median(values)
        figures[f"{name}_samples_per_s"] = rate
        if device.type == "cuda":
            figures[f"{name}_tflops"] = rate * flops[name] / batch / 1e12
        if peak is not None:
            figures[f"{name}_peak_share"] = rate * flops[name] / batch / peak
    emit(
        "train_step",
        figures,
        ratios=ratios,
        rates=rates,
        parameters=counts,
        flops_per_sample={name: count / batch for name, count in flops.items()},
        architecture="ddpm-128",
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        precision="bf16" if device.type == "cuda" else "fp32",
        batch=batch,
        resolution=SIZE,
        load_average=[before, os.getloadavg()],
    )


def _ours(device: torch.device) -> Side:
    net = MaskedUNet(preset(SIZE)).to(device)
    for parameter in net.parameters():
        parameter.data = parameter.data.contiguous()
    return Side(net=net.train(), forward=net, optimizer=_adamw(net))


def _theirs(device: torch.device) -> Side:
    net = UNet2DModel(
        sample_size=SIZE, in_channels=7, out_channels=3, block_out_channels=THEIR_WIDTHS, attention_head_dim=64
    ).to(device)

    def forward(noisy: Tensor, timesteps: Tensor, known: Tensor, hole: Tensor) -> Tensor:
        return net(torch.cat([noisy, known * (1 - hole), hole], dim=1), timesteps).sample

    return Side(net=net.train(), forward=forward, optimizer=_adamw(net))


def _adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=1e-4)


def _data(batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    noisy, known, target = (torch.randn(batch, 3, SIZE, SIZE, device=device) for _ in range(3))
    hole = (torch.rand(batch, 1, SIZE, SIZE, device=device) < 0.3).float()
    return noisy, torch.randint(0, 1000, (batch,), device=device), known, hole, target


def _step(side: Side, data: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], device: torch.device) -> None:
    *given, target = data
    with _autocast(device):
        output = side.forward(*given)
    loss = (F.mse_loss(output.float(), target, reduction="none") * given[3]).mean()
    side.optimizer.zero_grad()
    loss.backward()
    side.optimizer.step()


def _flops(side: Side, data: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], device: torch.device) -> float:
    with FlopCounterMode(display=False) as counter:
        _step(side, data, device)
    return float(counter.get_total_flops())


def _samples_per_s(
    side: Side, data: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], device: torch.device, steps: int, warmup: int
) -> float:
    for _ in range(warmup):
        _step(side, data, device)
    _wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        _step(side, data, device)
    _wait(device)
    return steps * len(data[0]) / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _autocast(device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
