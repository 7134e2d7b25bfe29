"""Engines to test: bases, made-up adapters, a source that hands them out, and orders."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel

from inpaint.models.adapter import Adapter, apply_adapter
from inpaint.models.base import load_base
from inpaint.paint.painter import Painter
from inpaint.paint.request import PaintRequest
from inpaint.serve.engine.engine import Engine
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.engine.torch_executor import TorchExecutor
from inpaint.serve.service import AdapterGone, AdapterUse, Begun, Painted, PaintOrder, Preview
from tests.unit.paint.examples import request_with

LEVEL = 1
"""Largest difference of a colour value: 1e-3 in [0, 1], and rounding."""
GUARD_S = 60
"""Against hanging only."""


def varied(adapter: Adapter, seed: int) -> Adapter:
    """Another made-up adapter for the same layers and tokens."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(tensors: Mapping[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
        return {name: torch.randn(tensor.shape, generator=generator) * scale for name, tensor in tensors.items()}

    return replace(adapter, lora=drawn(adapter.lora, 0.1), embeds=tuple(drawn(e, 0.5) for e in adapter.embeds))


class Adapters:
    """Adapters by digest; those in `held` are given out once `release` is set."""

    def __init__(self, adapters: Mapping[str, Adapter] | None = None) -> None:
        self.adapters = dict(adapters or {})
        self.held: set[str] = set()
        self.release = threading.Event()
        self.loaded: list[str] = []

    def load(self, name: str, digest: str) -> Adapter:
        if digest in self.held:
            assert self.release.wait(GUARD_S)
        self.loaded.append(digest)
        if digest not in self.adapters:
            raise AdapterGone(f"adapter {name}: this version is gone")
        return self.adapters[digest]


@contextmanager
def running(
    base: str | Path, source: Adapters | None = None, *, controlnet: ControlNetModel | None = None, **settings: object
) -> Iterator[Engine]:
    """A started engine; closed without draining at the end."""
    load = (source or Adapters()).load
    engine = Engine(TorchExecutor(load_base(base), EngineSettings(**settings), load, controlnet))  # type: ignore[arg-type]
    engine.start()
    try:
        yield engine
    finally:
        engine.close(drain=False)


def in_use(engine: Engine) -> int:
    """How many adapters jobs have now."""
    return sum(loan.users > 0 for loan in engine._scheduler.table._loans.values())


class Gate:
    """Counts the U-Net calls of an engine, and lets them through one by one once it is shut."""

    def __init__(self, engine: Engine) -> None:
        self.calls = 0
        self.arrived = threading.Semaphore(0)
        self._permits = threading.Semaphore(0)
        self._is_open = True
        executor = engine._executor
        place, name = (executor.runner, "unet") if isinstance(executor, TorchExecutor) else (executor.painter, "step")
        real = getattr(place, name)

        def unet(*arguments: object, **settings: object) -> object:
            self.arrived.release()
            if not self._is_open:
                assert self._permits.acquire(timeout=GUARD_S)
            self.calls += 1
            return real(*arguments, **settings)

        setattr(place, name, unet)

    def shut(self) -> None:
        self._is_open = False

    def let(self, calls: int) -> None:
        self._permits.release(calls)

    def open(self) -> None:
        self._is_open = True
        self._permits.release(1000)


def request(seed: int = 0, height: int = 64, width: int = 64, **settings: object) -> PaintRequest:
    """A noisy photo with a hole; three steps without guidance."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    hole = np.zeros((height, width), dtype=bool)
    hole[height // 4 : -height // 8, width // 8 : -width // 3] = True
    defaults = {"prompt": "a red box", "seed": seed, "steps": 3, "guidance_scale": 1.0, "image": image, "hole": hole}
    return request_with(**{**defaults, **settings})


def order(wanted: PaintRequest, *digests: str | tuple[str, float], **settings: object) -> PaintOrder:
    pairs = [d if isinstance(d, tuple) else (d, 1.0) for d in digests]
    uses = tuple(AdapterUse(name=digest, digest=digest, weight=weight) for digest, weight in pairs)
    return PaintOrder(id="order", request=wanted, adapters=uses, **settings)  # type: ignore[arg-type]


async def events_of(engine: Engine, wanted: PaintOrder) -> list[Preview | Painted]:
    return [event async for event in engine.paint(wanted) if not isinstance(event, Begun)]


def paint_all(engine: Engine, orders: list[PaintOrder]) -> list[list[Preview | Painted]]:
    """All at once; the events of each."""

    async def all_of_them() -> list[list[Preview | Painted]]:
        return await asyncio.wait_for(asyncio.gather(*[events_of(engine, o) for o in orders]), GUARD_S)

    return asyncio.run(all_of_them())


def pictures(engine: Engine, orders: list[PaintOrder]) -> list[np.ndarray]:
    return [events[-1].image for events in paint_all(engine, orders)]


def cancel_in_its_fourth_step(engine: Engine, cancelled: PaintOrder, then: PaintOrder) -> int:
    """Cancels an order while its fourth step is being taken, paints another one; returns the U-Net calls of both."""
    gate = Gate(engine)
    gate.shut()

    async def give_up() -> None:
        painting = asyncio.ensure_future(events_of(engine, cancelled))
        for _ in range(3):
            await asyncio.to_thread(gate.arrived.acquire)
            gate.let(1)
        await asyncio.to_thread(gate.arrived.acquire)
        painting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await painting

    asyncio.run(give_up())
    gate.open()
    pictures(engine, [then])
    return gate.calls


def by_painter(base: str | Path, wanted: PaintRequest, adapter: Adapter | None = None) -> np.ndarray:
    """The picture of a painter of its own."""
    if adapter is None:
        return _painter(str(base)).paint([wanted])[0]
    loaded = load_base(base)
    apply_adapter(loaded, adapter)
    return Painter(loaded).paint([wanted])[0]


@cache
def _painter(base: str) -> Painter:
    return Painter(load_base(base))


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def with_lora(adapter: Adapter, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Adapter:
    """A copy with other tensors."""
    return replace(adapter, lora=change(dict(adapter.lora)))
