"""A compiled engine compiles before it is ready, and never while somebody waits."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from inpaint.models.base import load_base
from inpaint.serve.engine.engine import Engine, EngineBroken
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.engine.torch_executor import TorchExecutor
from tests.tiny import tiny_sd_inpaint
from tests.unit.serve.engines import GUARD_S, LEVEL, Adapters, by_painter, difference, order, pictures, request, running

SMALL = {"compile": True, "slots": 2, "max_rank": 4}


@pytest.fixture
def base(tmp_path):
    return tiny_sd_inpaint(tmp_path / "base")


def test_all_shapes_are_compiled_before_it_is_ready_and_a_check_meanwhile_is_passed(base, monkeypatch):
    seen: list[tuple[int, ...]] = []
    go_on = threading.Event()

    def compile_slowly(unet: Callable[..., Any], **_: object) -> Callable[..., Any]:
        def call(latents: torch.Tensor, *arguments: object, **settings: object) -> object:
            assert go_on.wait(GUARD_S)
            seen.append(tuple(latents.shape))
            return unet(latents, *arguments, **settings)

        return call

    monkeypatch.setattr(torch, "compile", compile_slowly)
    settings = EngineSettings(max_rows=4, batch_sizes=(2, 4), compile_shapes=((32, 32), (48, 24)), **SMALL)
    engine = Engine(TorchExecutor(load_base(base), settings, Adapters().load))
    starting = threading.Thread(target=engine.start)
    starting.start()
    asyncio.run(engine.check(0.05))
    assert starting.is_alive() and not seen
    go_on.set()
    starting.join(GUARD_S)
    assert seen[:4] == [(rows, 9, high, wide) for high, wide in ((16, 16), (24, 12)) for rows in (2, 4)]
    engine.close(drain=False)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_shape_that_the_base_cannot_have_is_refused_at_the_start(base, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda unet, **_: unet)
    settings = EngineSettings(max_rows=2, batch_sizes=(2,), compile_shapes=((32, 33),), **SMALL)
    with pytest.raises(EngineBroken, match="32 x 33"):
        Engine(TorchExecutor(load_base(base), settings, Adapters().load)).start()


def test_what_was_not_compiled_before_is_painted_uncompiled(base, monkeypatch):
    compiled, compile_really = [], torch.compile

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        compiled.append(tuple(inputs[0].shape))
        return graph.forward

    def compile_a_little(unet: Callable[..., Any], **_: object) -> Callable[..., Any]:
        """Of a U-Net only what its input goes through: all of it takes half a minute."""
        part = compile_really(lambda latents: latents * 1.0, backend=count, dynamic=False)
        return lambda latents, *arguments, **others: unet(part(latents), *arguments, **others)

    monkeypatch.setattr(torch, "compile", compile_a_little)
    asked = [request(1, 32, 32), request(2, 48, 24), request(3, 32, 32, guidance_scale=3.0)]
    with running(base, max_rows=4, batch_sizes=(2, 4), **SMALL) as engine:
        painted = pictures(engine, [order(one) for one in asked])
    assert compiled == [(2, 9, 16, 16), (4, 9, 16, 16)]
    for one, picture in zip(asked, painted, strict=True):
        assert difference(picture, by_painter(base, one)) <= LEVEL
