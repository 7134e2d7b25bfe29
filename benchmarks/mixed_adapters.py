"""What rows with adapters of their own cost: the engine's tick with many adapters over its tick with one.

    python -m benchmarks.mixed_adapters                                  # a minute on 2 cores
    python -m benchmarks.mixed_adapters --architecture sdxl-inpaint      # for a GPU; random weights, no download

A tick is what the painting engine of the service does per step: one forward of the U-Net for 8 rows and each row's own
sampler step. The sides take turns: 8 rows with one adapter, 8 rows with 8, and the same 8 with 64 adapters resident
instead of 8. Adapters have one rank and are made up (on the toy base: a shipped one plus noise). A tick is timed with
its batch made, as it is for every step but the first after rows have changed; making it is the figure `stack_ms`.
Bars: `tick_ratio_8_adapters` <= 1.25, `tick_ratio_64_resident` <= 1.05. Beside them a bare forward of the same U-Net,
and the running engine: U-Net rows per second for orders of 50 steps, 16 at a time, read, encoded, decoded and pasted
back, with no, one and 16 adapters, over that of bare forwards of 16 rows (`engine_share_*`).
"""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

import numpy as np
import torch
import tyro

from benchmarks.harness import emit, progress
from benchmarks.random_base import build_architecture
from inpaint.diffusion.samplers import Sampler, trajectory
from inpaint.export.adapter_folder import load_adapter
from inpaint.models.adapter import Adapter, AdapterCard
from inpaint.models.base import Base, load_base
from inpaint.models.locate import TOY_BASE
from inpaint.models.prompts import Conditioning, unet_kwargs
from inpaint.paint.denoise import DenoisingRow
from inpaint.paint.request import PaintRequest, SamplingSettings
from inpaint.serve.engine.engine import Engine
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.engine.torch_executor import TorchExecutor
from inpaint.serve.engine.unet_runner import UNetRunner
from inpaint.serve.service import AdapterUse, PaintOrder

FULL = 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    architecture: Literal["toy", "sd15-inpaint", "sdxl-inpaint"] = "toy"
    """Random weights of this architecture, but for toy; all but toy are meant for a GPU."""
    rows: int = 8
    """U-Net rows of a tick, and the number of adapters on the second side."""
    resident: int = 64
    """Adapters in slots on the third side."""
    rank: int = 16
    """Of the adapters; the toy ones' own on the toy base."""
    ticks: int = 3
    """Timed ticks per side and turn."""
    rounds: int = 24
    """Turns that each side takes."""
    engine: bool = True
    """Whether the running engine is measured beside."""

    def __post_init__(self) -> None:
        if min(self.rows, self.rank, self.ticks, self.rounds) < 1 or self.resident < self.rows:
            raise SystemExit("rows, rank, ticks and rounds must be at least 1, resident at least rows")


def base_of(settings: Settings, device: torch.device) -> Base:
    """A base of its own, for runners change theirs."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if settings.architecture == "toy":
        return load_base("toy", device=device, dtype=dtype)
    return build_architecture(settings.architecture, device=device, dtype=dtype)


def adapters_of(settings: Settings, device: torch.device) -> dict[str, Adapter]:
    """Digest -> adapter: a shipped one plus noise, or noise."""
    if settings.architecture == "toy":
        first = load_adapter(TOY_BASE.parent / "adapters" / "CDP_COS")
    else:
        first = _noise(base_of(settings, device), settings.rank)
    generator = torch.Generator().manual_seed(0)

    def other() -> Adapter:
        noisy = {n: t.float() + 0.01 * torch.randn(t.shape, generator=generator) for n, t in first.lora.items()}
        return replace(first, lora=noisy)

    return {f"adapter-{i}": other() for i in range(settings.resident)}


def _noise(base: Base, rank: int) -> Adapter:
    lora = {}
    for layer, (outputs, inputs) in base.info.layers.items():
        lora[f"{layer}.lora_A.weight"] = torch.zeros(rank, inputs)
        lora[f"{layer}.lora_B.weight"] = torch.zeros(outputs, rank)
    card = AdapterCard(
        base=base.info.name,
        base_revision=base.info.revision,
        tokens={"CDP_X": "CDP_X"},
        prompt_format="{token} background, {prompt}",
        resolution=base.info.default_size,
        rank=rank,
        alpha=float(rank),
        samples=0,
        manifest="",
    )
    embeds = tuple({"CDP_X": torch.zeros(width)} for width in base.info.text_widths)
    return Adapter(card=card, lora=lora, embeds=embeds)


def runner_of(settings: Settings, adapters: dict[str, Adapter], slots: int, device: torch.device) -> UNetRunner:
    """A runner whose slots, from 1 on, hold the first adapters."""
    rank = max(adapter.card.rank for adapter in adapters.values())
    runner = UNetRunner(base_of(settings, device), EngineSettings(slots=slots, max_rank=rank))
    for slot, adapter in enumerate(list(adapters.values())[:slots], start=1):
        runner.slots.put(slot, runner.slots.pack(adapter))
    return runner


def rows_of(runner: UNetRunner, slots: Sequence[int]) -> list[DenoisingRow]:
    """Rows in the middle of their steps, each with the adapter of one slot."""
    base, generator = runner.base, torch.Generator().manual_seed(1)
    side = base.info.default_size // base.info.downsample
    context = (1, base.text_encoders[0].config.max_position_embeddings, int(base.unet.config.cross_attention_dim))

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(base.device)

    rows = []
    for slot in slots:
        pooled = drawn(1, base.text_encoders[1].config.projection_dim).to(base.dtype) if base.info.is_xl else None
        rows.append(
            DenoisingRow(
                trajectory=trajectory(runner.schedule, Sampler.DDIM, 900),
                guidance_scale=1.0,
                latents_Chw=drawn(4, side, side),
                clean_Chw=drawn(4, side, side),
                earlier_Chw=drawn(4, side, side),
                noise_Chw=drawn(4, side, side),
                fresh_SChw=None,
                hole_1hw=torch.ones(1, side, side, device=base.device),
                known_Chw=drawn(4, side, side),
                text=Conditioning(drawn(*context).to(base.dtype), pooled),
                negative=None,
                uses=((slot, 1.0),),
            )
        )
    return rows


def ticker(runner: UNetRunner, slots: Sequence[int], ticks: int) -> Callable[[], float]:
    """A call does `ticks` ticks and returns their mean seconds."""
    stack = runner.stack(rows_of(runner, slots))
    return lambda: _seconds(lambda: runner.step(stack), ticks, runner.base.device)


def bare(settings: Settings, rows: int, ticks: int, device: torch.device) -> Callable[[], float]:
    """As `ticker`: forwards of an untouched U-Net, which diffusers' own processors attend in."""
    base = base_of(settings, device)
    unet, info = base.unet.to(memory_format=torch.channels_last), base.info
    side, width = info.default_size // info.downsample, int(base.unet.config.cross_attention_dim)
    latents = torch.randn(rows, info.in_channels, side, side).to(device, base.dtype, memory_format=torch.channels_last)
    length = base.text_encoders[0].config.max_position_embeddings
    text = torch.randn(rows, length, width).to(device, base.dtype)
    pooled = None
    if base.info.is_xl:
        pooled = torch.randn(rows, base.text_encoders[1].config.projection_dim).to(device, base.dtype)
    kwargs = unet_kwargs(Conditioning(text, pooled), base.info.default_size, base.info.default_size)
    times = torch.full((rows,), 500.0, device=device)
    return lambda: _seconds(lambda: unet(latents, times, **kwargs), ticks, device)


def _seconds(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Mean seconds of a call; one more before, for what is set up at first."""
    work()
    _wait(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    _wait(device)
    return (time.perf_counter() - started) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds by side; every round begins with another side, so that drift of the machine cancels."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for i in range(rounds):
        start = i % len(names)
        for name in names[start:] + names[:start]:
            found[name].append(sides[name]())
        progress(f"round {i + 1}/{rounds}: " + ", ".join(f"{n} {1e3 * v[-1]:.1f} ms" for n, v in found.items()))
    return found


def ratio(found: dict[str, list[float]], side: str, other: str) -> float:
    """Median over the rounds."""
    return median(a / b for a, b in zip(found[side], found[other], strict=True))


def engine_rate(engine: Engine, digests: list[str], *, orders: int, steps: int) -> float:
    """U-Net rows per second of a running engine that always has orders waiting, until the last is done."""
    size = engine.info.default_size
    sampling = SamplingSettings(steps=steps, guidance_scale=1.0)
    random = np.random.default_rng(0)
    hole = np.zeros((size, size), dtype=bool)
    hole[size // 8 : -size // 8, size // 8 : -size // 8] = True

    async def paint(number: int, turns: asyncio.Semaphore) -> None:
        image = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
        request = PaintRequest(image=image, hole=hole, prompt="a red box", seed=number, sampling=sampling)
        uses = (digests[number % len(digests)],) if digests else ()
        order = PaintOrder(id=str(number), request=request, adapters=tuple(AdapterUse(name=d, digest=d) for d in uses))
        async with turns:
            async for _ in engine.paint(order):
                pass

    async def all_of_them() -> None:
        turns = asyncio.Semaphore(FULL + engine.settings.ahead_rows)
        await asyncio.gather(*[paint(i, turns) for i in range(orders)])

    started = time.perf_counter()
    asyncio.run(all_of_them())
    return orders * steps / (time.perf_counter() - started)


def engine_figures(settings: Settings, adapters: dict[str, Adapter], device: torch.device) -> dict[str, float]:
    """Rows per second of the engine, and their share of bare forwards before and after."""
    rank = max(adapter.card.rank for adapter in adapters.values())
    forward = bare(settings, FULL, settings.ticks, device)
    sizes = EngineSettings(max_rows=FULL, slots=FULL, max_rank=rank)
    engine = Engine(TorchExecutor(base_of(settings, device), sizes, lambda name, digest: adapters[digest]))
    engine.start()
    figures: dict[str, float] = {}
    for name, count in (("none", 0), ("one", 1), ("16", 16)):
        digests = list(adapters)[:count]
        engine_rate(engine, digests, orders=FULL, steps=2)
        before = forward()
        rate = engine_rate(engine, digests, orders=2 * FULL, steps=50)
        ceiling = FULL / ((before + forward()) / 2)
        figures[f"engine_rows_per_s_{name}"] = rate
        figures[f"engine_share_{name}"] = rate / ceiling
        figures["bare_rows_per_s"] = ceiling
        progress(f"engine, adapters: {name}: {rate:.1f} rows/s of {ceiling:.1f} bare")
    engine.close(drain=True)
    return figures


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = os.getloadavg()
    adapters = adapters_of(settings, device)
    few = runner_of(settings, adapters, settings.rows, device)
    many = runner_of(settings, adapters, settings.resident, device)
    first = range(1, settings.rows + 1)
    # Where many are resident, the adapters are spread over all slots.
    spread = range(1, settings.resident + 1)[:: settings.resident // settings.rows][: settings.rows]
    with torch.inference_mode():
        sides = {
            "one": ticker(few, [1] * settings.rows, settings.ticks),
            "each": ticker(few, first, settings.ticks),
            "each_of_many": ticker(many, spread, settings.ticks),
            "bare": bare(settings, settings.rows, settings.ticks, device),
        }
        stack = _seconds(lambda: many.stack(rows_of(many, spread)), 5, device)
        found = in_turn(sides, settings.rounds)
    emit(
        "mixed_adapters",
        {
            "tick_ratio_8_adapters": ratio(found, "each", "one"),
            "tick_ratio_64_resident": ratio(found, "each_of_many", "each"),
            "tick_over_bare_forward": ratio(found, "each", "bare"),
            "tick_ms": 1e3 * median(found["each"]),
            "stack_ms": 1e3 * stack,
            **(engine_figures(settings, adapters, device) if settings.engine else {}),
        },
        seconds=found,
        architecture=settings.architecture,
        rows=settings.rows,
        resident=settings.resident,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        load_average=[before, os.getloadavg()],
    )


if __name__ == "__main__":
    main()
