"""Rows with adapters of their own: each is painted with its own and with no other, as it would be alone."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image

from inpaint.diffusion.samplers import Sampler
from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import load_adapter, save_adapter
from inpaint.models.adapter import Adapter
from inpaint.models.locate import TOY_BASE
from inpaint.paint.paste import paste_back
from inpaint.serve.engine.engine import Engine
from inpaint.serve.service import AdapterGone
from tests.adapters import made_up, without_tokens
from tests.tiny import tiny_sd_inpaint, tiny_sdxl_inpaint
from tests.unit.serve.engines import (
    GUARD_S,
    LEVEL,
    Adapters,
    Gate,
    by_painter,
    difference,
    events_of,
    in_use,
    order,
    paint_all,
    pictures,
    request,
    running,
    varied,
)

CATEGORIES = 12


def shipped(name: str) -> Adapter:
    return load_adapter(TOY_BASE.parent / "adapters" / name)


def test_rows_with_different_adapters_share_a_batch():
    adapters = {name: shipped(name) for name in ("CDP_COS", "CDP_FOOD")} | {
        "large": made_up("toy", 3, rank=9),
        "plain": without_tokens(shipped("CDP_FOOD")),
    }
    asked = [
        (request(1, prompt="CDP_COS background, a red box"), "CDP_COS"),
        (request(2, prompt="CDP_FOOD background, a red box", guidance_scale=2.0), "CDP_FOOD"),
        (request(3), None),
        (request(4, prompt="cdp_x background", sampler=Sampler.EULER), "large"),
        (request(5, prompt="CDP_X and CDP_X", negative_prompt="CDP_X", guidance_scale=3.0), "large"),
        (request(6, prompt="CDP_COS background, a red box", steps=5), "CDP_COS"),
        (request(7, prompt="a red box"), "plain"),
    ]
    with running("toy", Adapters(adapters)) as engine:
        orders = [order(wanted, *filter(None, [name])) for wanted, name in asked]
        painted = paint_all(engine, orders)
        assert engine.resident() == set(adapters)
        again = pictures(engine, orders)
        assert engine.stats().adapter_loads == 4, "resident adapters are not loaded again"
    for (wanted, name), events, picture in zip(asked, painted, again, strict=True):
        alone = by_painter("toy", wanted, adapters.get(name))
        assert difference(events[-1].image, alone) <= LEVEL
        assert difference(picture, alone) <= LEVEL
        if name is not None:
            assert difference(alone, by_painter("toy", wanted)) > 10, "else equality says nothing"


@pytest.mark.parametrize("make", [tiny_sd_inpaint, tiny_sdxl_inpaint])
def test_on_other_bases_too(tmp_path, make):
    folder = make(tmp_path / "base")
    adapters = {f"a{i}": made_up(folder, i, rank=2 + i, tokens=("CDP_A", "CDP_X")) for i in range(3)}
    asked = [(request(i, 32, 32, prompt="CDP_X and CDP_A wood", guidance_scale=3.0), f"a{i}") for i in range(3)]
    with running(folder, Adapters(adapters)) as engine:
        painted = pictures(engine, [order(wanted, name) for wanted, name in asked])
    for (wanted, name), picture in zip(asked, painted, strict=True):
        alone = by_painter(folder, wanted, adapters[name])
        assert difference(picture, alone) <= LEVEL < difference(alone, by_painter(folder, wanted))


def test_many_categories_on_few_slots_never_get_each_others_adapter():
    first = made_up("toy", 0)
    source = Adapters({f"c{i}": varied(first, i) for i in range(CATEGORIES)})
    # One photo and seed for all, so that another category's adapter would show.
    wanted = request(1, steps=2, prompt="CDP_X background, a box")
    orders = [order(wanted, f"c{i}") for i in range(CATEGORIES)]
    with running("toy", source, slots=4, max_rows=8) as engine:
        together = pictures(engine, orders)
        stats = engine.stats()
        assert stats.resident_adapters == 4 and in_use(engine) == 0
        assert stats.adapter_evictions >= CATEGORIES - 4
        alone = [pictures(engine, [one])[0] for one in orders]
    for name, picture, solo in zip(source.adapters, together, alone, strict=True):
        assert difference(picture, solo) <= LEVEL, name
    for i in range(0, CATEGORIES, 5):
        assert difference(alone[i], by_painter("toy", wanted, source.adapters[f"c{i}"])) <= LEVEL
    for i, one in enumerate(alone):
        assert all(difference(one, other) > 3 * LEVEL for other in alone[i + 1 :])


def test_several_weighted_adapters_are_diffusers_set_adapters(tmp_path):
    folder: Path = tiny_sd_inpaint(tmp_path / "base")
    adapters = {"a": made_up(folder, 1, rank=3), "b": made_up(folder, 2, rank=5)}
    weights = {"a": 0.7, "b": -0.4}
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    for name, adapter in adapters.items():
        pipeline.load_lora_weights(save_adapter(tmp_path / name, adapter), use_safetensors=True, adapter_name=name)
    pipeline.set_adapters(list(weights), list(weights.values()))
    wanted = request(1, 32, 32, prompt="the red wood", guidance_scale=3.0)
    theirs = pipeline(
        wanted.prompt,
        image=Image.fromarray(wanted.image),
        mask_image=Image.fromarray(wanted.hole.astype(np.uint8) * 255),
        height=32,
        width=32,
        num_inference_steps=wanted.sampling.steps,
        guidance_scale=wanted.sampling.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(wanted.seed),
        output_type="np",
    ).images[0]
    pasted = paste_back(wanted.image, np.rint(theirs * 255).astype(np.uint8), wanted.hole)
    with running(folder, Adapters(adapters)) as engine:
        both, one, _ = pictures(
            engine, [order(wanted, *weights.items()), order(wanted, "a"), order(request(2, 32, 32))]
        )
    assert difference(both, pasted) <= LEVEL
    assert difference(one, pasted) > 3 * LEVEL


def test_an_adapter_in_use_is_not_loaded_over():
    # The second adapter waits for the only slot while the first one's order is in the middle of its steps.
    source = Adapters({"a": made_up("toy", 1), "b": made_up("toy", 2)})
    wanted = [request(1, steps=4), request(2, steps=2)]
    with running("toy", source, slots=1) as engine:
        gate = Gate(engine)
        gate.shut()

        async def both() -> list[np.ndarray]:
            first = asyncio.ensure_future(events_of(engine, order(wanted[0], "a")))
            await asyncio.to_thread(gate.arrived.acquire)
            second = asyncio.ensure_future(events_of(engine, order(wanted[1], "b")))
            gate.let(2)
            await asyncio.to_thread(gate.arrived.acquire)
            await asyncio.to_thread(gate.arrived.acquire)
            assert source.loaded == ["a"] and engine.resident() == {"a"}
            gate.open()
            return [events[-1].image for events in await asyncio.gather(first, second)]

        painted = asyncio.run(asyncio.wait_for(both(), GUARD_S))
    for one, name, picture in zip(wanted, "ab", painted, strict=True):
        assert difference(picture, by_painter("toy", one, source.adapters[name])) <= LEVEL


def test_loading_does_not_hold_the_others_up():
    source = Adapters({"slow": made_up("toy", 1)})
    source.held.add("slow")
    with running("toy", source) as engine:

        async def both() -> tuple[int, int]:
            slow = asyncio.ensure_future(events_of(engine, order(request(1), "slow")))
            await events_of(engine, order(request(2)))
            assert not slow.done()
            source.release.set()
            return (await slow)[-1].steps

        assert asyncio.run(asyncio.wait_for(both(), GUARD_S)) == 3


def test_a_load_that_fails_late_fails_no_later_order_whose_own_load_is_on_its_way():
    class FailsFirst(Adapters):
        def __init__(self) -> None:
            super().__init__()
            self.begun = threading.Semaphore(0)
            self.go_on = [threading.Event(), threading.Event()]

        def load(self, name: str, digest: str) -> Adapter:
            number = len(self.loaded)
            self.loaded.append(digest)
            self.begun.release()
            assert self.go_on[number].wait(GUARD_S)
            if number == 0:
                raise AdapterGone("gone")
            return made_up("toy", 1)

    async def twice(engine: Engine) -> int:
        first, second = (asyncio.ensure_future(events_of(engine, order(request(1), "a"))) for _ in range(2))
        await asyncio.to_thread(source.begun.acquire)
        for one in (first, second):
            one.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        third = asyncio.ensure_future(events_of(engine, order(request(1), "a")))
        await asyncio.to_thread(source.begun.acquire)
        source.go_on[0].set()
        engine._loaders.submit(lambda: None).result(GUARD_S)  # the first load's thread is free again: it has failed
        await engine.check(GUARD_S)
        assert not third.done()
        source.go_on[1].set()
        return (await third)[-1].steps

    source = FailsFirst()
    with running("toy", source, loaders=2) as engine:
        assert asyncio.run(asyncio.wait_for(twice(engine), GUARD_S)) == 3


def test_what_nobody_waits_for_any_more_is_not_loaded():
    source = Adapters({"slow": made_up("toy", 1)})
    source.held.add("slow")

    async def one_leaves(engine: Engine) -> None:
        slow, leaves = (asyncio.ensure_future(events_of(engine, order(request(1), name))) for name in ("slow", "x"))
        while in_use(engine) < 2:  # then its load waits behind the slow one
            await engine.check(GUARD_S)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        await engine.check(GUARD_S)
        source.release.set()
        await slow
        engine._loaders.submit(lambda: None).result(GUARD_S)

    with running("toy", source) as engine:
        asyncio.run(asyncio.wait_for(one_leaves(engine), GUARD_S))
    assert source.loaded == ["slow"]


@pytest.mark.parametrize("damage", ["gone", "bad"])
def test_an_adapter_that_cannot_be_loaded_fails_its_orders_alone(damage):
    source = Adapters({"good": made_up("toy", 1)} | ({"bad": made_up("toy", 2, rank=30)} if damage == "bad" else {}))

    async def both(engine: Engine) -> list[object]:
        orders = [order(request(1), damage), order(request(2), damage), order(request(3), "good")]
        return await asyncio.wait_for(
            asyncio.gather(*[events_of(engine, o) for o in orders], return_exceptions=True), GUARD_S
        )

    with running("toy", source, slots=1) as engine:
        first, second, good = asyncio.run(both(engine))
        assert in_use(engine) == 0 and engine.resident() == {"good"}
    for error in (first, second):
        assert isinstance(error, AdapterGone if damage == "gone" else InpaintError)
        assert ("is gone" if damage == "gone" else "rank 30") in str(error)
    assert difference(good[-1].image, by_painter("toy", request(3), source.adapters["good"])) <= LEVEL


def test_more_adapters_than_slots_are_refused():
    with running("toy", slots=2) as engine:
        with pytest.raises(InpaintError, match="at most 2"):
            paint_all(engine, [order(request(1), "a", "b", "c")])
