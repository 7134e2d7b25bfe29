"""A slot is written only after all that reads it, and read only after it was written: on a device that does its work
later, of which the host knows only what an event has told it."""

import asyncio
import contextlib
from collections.abc import Iterator

import pytest
import torch

from inpaint.models.base import load_base
from inpaint.models.low_rank import LoraPool
from inpaint.serve.engine import side_stream
from inpaint.serve.engine.engine import Engine
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.engine.torch_executor import TorchExecutor
from tests.adapters import made_up
from tests.unit.serve.engines import GUARD_S, Adapters, events_of, order, request, varied

Access = tuple[LoraPool, int, bool]
"""Of a slot of a pool; True: it is written."""


class Device:
    """In place of `torch.cuda`: streams know which accesses must be over before their next one begins."""

    def __init__(self) -> None:
        self.main, self.host = self.Stream(), set[int]()
        self.current = self.main
        self.is_late = False
        self.accesses: list[tuple[Access, frozenset[int]]] = []
        """With those that are over when it begins."""
        device = self

        class Event:
            def record(self, stream: "Device.Stream") -> None:
                self.after = set(stream.after)

            def query(self) -> bool:
                if not device.is_late:
                    self.synchronize()
                return not device.is_late

            def synchronize(self) -> None:
                device.host |= self.after

        self.Event = Event

    class Stream:
        def __init__(self, _: object = None) -> None:
            self.after: set[int] = set()

        def wait_stream(self, other: "Device.Stream") -> None:
            self.after |= other.after

    def current_stream(self, _: object) -> "Device.Stream":
        return self.main

    @contextlib.contextmanager
    def stream(self, stream: "Device.Stream") -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def access(self, *what: object) -> None:
        self.current.after |= self.host
        self.accesses.append((what, frozenset(self.current.after)))  # type: ignore[arg-type]
        self.current.after.add(len(self.accesses) - 1)

    def check(self) -> int:
        """How often a slot was written after it had been read."""
        written_over = 0
        for number, ((pool, slot, is_write), over) in enumerate(self.accesses):
            same = [i for i, (one, _) in enumerate(self.accesses[:number]) if one[:2] == (pool, slot)]
            conflicts = [i for i in same if is_write or self.accesses[i][0][2]]
            assert over.issuperset(conflicts), (
                f"slot {slot}: access {number} may begin before one of {conflicts} is over"
            )
            written_over += is_write and bool(conflicts)
        return written_over


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device, put, gather = Device(), LoraPool.put, LoraPool.gather

    def put_seen(pool: LoraPool, slot: int, packed: torch.Tensor) -> None:
        device.access(pool, slot, True)
        put(pool, slot, packed)

    def gather_seen(pool: LoraPool, uses_U: list, **how: bool) -> object:
        for slot in {slot for uses in uses_U for slot, _ in uses}:
            device.access(pool, slot, False)
        return gather(pool, uses_U, **how)

    monkeypatch.setattr(side_stream.torch, "get_device_module", lambda _: device)
    monkeypatch.setattr(LoraPool, "put", put_seen)
    monkeypatch.setattr(LoraPool, "gather", gather_seen)
    return device


def test_a_slot_is_written_over_after_its_readers_also_those_of_orders_that_left(device: Device) -> None:
    first = made_up("toy", 0)
    source = Adapters({name: varied(first, i) for i, name in enumerate("abc")})
    engine = Engine(TorchExecutor(load_base("toy"), EngineSettings(slots=1), source.load))
    engine.start()
    stepping, go_on = asyncio.Event(), engine._executor.advance

    async def leave(name: str, seen: asyncio.Event) -> None:
        """Gives up an order once it is being encoded, or steps, while the device is behind with it."""
        painting = asyncio.ensure_future(events_of(engine, order(request(1, steps=900), name)))
        await asyncio.wait_for(seen.wait(), GUARD_S)
        painting.cancel()
        await asyncio.gather(painting, return_exceptions=True)

    async def one_after_another() -> None:
        loop, encoding = asyncio.get_running_loop(), asyncio.Event()
        encode = engine._executor.encode

        def encode_seen(jobs: list) -> object:
            done = encode(jobs)
            loop.call_soon_threadsafe(encoding.set)
            return done

        def advance_seen(jobs: list) -> object:
            stepped = go_on(jobs)
            loop.call_soon_threadsafe(stepping.set)
            return stepped

        engine._executor.encode, engine._executor.advance = encode_seen, advance_seen
        device.is_late = True
        await leave("a", encoding)
        encoding.clear()
        second = asyncio.ensure_future(leave("b", stepping))
        await asyncio.wait_for(encoding.wait(), GUARD_S)
        device.is_late = False
        await second
        await asyncio.wait_for(events_of(engine, order(request(2), "c")), GUARD_S)

    asyncio.run(one_after_another())
    engine.close(drain=False)
    assert device.check() == 2 * len(engine._executor.runner.slots.pools), "else it proves nothing"
