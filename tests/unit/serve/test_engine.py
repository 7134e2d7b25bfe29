"""The engine paints what the painter paints, whatever shares its ticks, and lets go of what is not wanted any more."""

import asyncio
import contextlib
import queue
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from inpaint.diffusion.noise_levels import StepSchedule
from inpaint.diffusion.samplers import Sampler
from inpaint.errors import InpaintError
from inpaint.models.adapter import apply_adapter
from inpaint.models.base import load_base
from inpaint.paint.painter import Painter
from inpaint.paint.paste import kept_pixels_changed
from inpaint.serve.engine.engine import Engine, EngineBroken
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.engine.torch_executor import TorchExecutor
from inpaint.serve.service import AdapterGone, DeadlinePassed, Painted, PaintOrder, Preview, Unpaintable
from tests.adapters import made_up
from tests.tiny import tiny_sd, tiny_sd_inpaint, tiny_sdxl_inpaint
from tests.unit.serve.engines import (
    GUARD_S,
    LEVEL,
    Adapters,
    Gate,
    by_painter,
    cancel_in_its_fourth_step,
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

MIXED = [
    request(1),
    request(2, guidance_scale=4.0, prompt="a blue ball", negative_prompt="wood"),
    request(3, steps=7, sampler=Sampler.EULER),
    request(4, sampler=Sampler.EULER_ANCESTRAL, guidance_scale=2.0),
    request(5, steps=6, sampler=Sampler.DPMPP_2M, strength=0.6),
    request(6, sampler=Sampler.LCM, steps=4),
    request(7, height=100, width=150),
    request(8, strength=0.7),
    request(9, height=300, width=280, padding=10, feather=3),
    request(10, sampler=Sampler.DPMPP_2M, steps=5),
    request(11, sampler=Sampler.HEUN, schedule=StepSchedule.KARRAS, steps=4),
    request(13, prompt="a blue ball " * 11, guidance_scale=2.0),
    request(14, prompt="a (blue:1.4) ball BREAK wood BREAK a ball", prompt_weights=True),
    request(12, sampler=Sampler.UNIPC, schedule=StepSchedule.EXPONENTIAL, steps=6, guidance_scale=3.0),
]


@pytest.mark.parametrize("max_rows", [4, 16])
def test_orders_of_all_kinds_get_the_painters_pictures(max_rows):
    with running("toy", max_rows=max_rows) as engine:
        painted = paint_all(engine, [order(wanted) for wanted in MIXED])
        stats = engine.stats()
    for wanted, events in zip(MIXED, painted, strict=True):
        assert difference(events[-1].image, by_painter("toy", wanted)) <= LEVEL
        assert events[-1].kept_pixels_changed == kept_pixels_changed(wanted.image, events[-1].image, wanted.hole) == 0
        assert events[-1].steps == wanted.sampling.steps_taken
    assert stats.painted == len(MIXED) and stats.rows > 2 * stats.ticks
    assert (stats.queued, stats.running, stats.remaining_work) == (0, 0, 0)
    steps = [w.sampling.steps_taken * (2 if w.sampling.is_guided else 1) for w in MIXED]
    assert stats.rows == sum(steps)


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl_inpaint])
def test_other_bases_get_the_painters_pictures_too(tmp_path, make):
    folder = make(tmp_path / "base")
    wanted = [
        request(i, height=32, width=32, sampler=s, guidance_scale=3.0 - 2 * (i % 2)) for i, s in enumerate(Sampler)
    ]
    with running(folder) as engine:
        painted = pictures(engine, [order(one) for one in wanted])
    for one, picture in zip(wanted, painted, strict=True):
        assert difference(picture, by_painter(folder, one)) <= LEVEL


def test_in_bf16_the_painters_pictures_come_too(tmp_path):
    folder = tiny_sd_inpaint(tmp_path / "base")
    adapter = varied(made_up(folder, 1, rank=2), 1)
    one = request(1, 32, 32, steps=2, guidance_scale=5.0, prompt="CDP_X background")
    half, plain = load_base(folder, dtype=torch.bfloat16), load_base(folder, dtype=torch.bfloat16)
    apply_adapter(plain, adapter)
    engine = Engine(TorchExecutor(half, EngineSettings(), Adapters({"a": adapter}).load))
    engine.start()
    (picture,) = pictures(engine, [order(one, "a")])
    engine.close(drain=False)
    # bf16 has 8 bits, and sums in another order are rounded otherwise.
    assert difference(picture, Painter(plain).paint([one])[0]) <= 8
    assert 0 < difference(picture, by_painter(folder, one, adapter)) <= 8
    assert difference(picture, by_painter(folder, one)) > 16, "else the adapter has no part in it"


def test_padded_batches_paint_the_same():
    wanted = [request(1), request(2, guidance_scale=3.0)]
    with running("toy", batch_sizes=(2, 8), max_rows=8) as engine:
        painted = pictures(engine, [order(one) for one in wanted])
    for one, picture in zip(wanted, painted, strict=True):
        assert difference(picture, by_painter("toy", one)) <= LEVEL


def test_orders_join_while_others_are_painted():
    with running("toy") as engine:
        gate = Gate(engine)
        gate.shut()

        async def join() -> list[list[Preview | Painted]]:
            first = asyncio.ensure_future(events_of(engine, order(request(1, steps=6))))
            await asyncio.to_thread(gate.arrived.acquire)
            second = asyncio.ensure_future(events_of(engine, order(request(2, steps=2))))
            gate.open()
            return await asyncio.wait_for(asyncio.gather(first, second), GUARD_S)

        first, second = asyncio.run(join())
        # Eight rows in less than eight ticks: some were shared.
        assert engine.stats().ticks < 8
    assert first[-1].batch_rows > 1
    assert difference(second[-1].image, by_painter("toy", request(2, steps=2))) <= LEVEL


def test_previews_come_in_order_and_keep_kept_pixels():
    wanted = request(1, steps=8)
    with running("toy") as engine:
        (events,) = paint_all(engine, [order(wanted, previews=3)])
    assert [type(event) for event in events] == [Preview] * 3 + [Painted]
    assert [event.index for event in events[:3]] == [0, 1, 2]
    for event in events:
        assert kept_pixels_changed(wanted.image, event.image, wanted.hole) == 0
    last = events[-1].image.astype(int)[wanted.hole]
    errors = [np.abs(event.image.astype(int)[wanted.hole] - last).mean() for event in events[:3]]
    assert errors == sorted(errors, reverse=True) and errors[-1] > 0


def test_a_cancelled_order_takes_part_in_no_further_tick():
    with running("toy") as engine:
        assert cancel_in_its_fourth_step(engine, order(request(1, steps=50)), order(request(2, steps=2))) == 4 + 2
        stats = engine.stats()
    assert (stats.cancelled, stats.wasted_steps, stats.painted) == (1, 4, 1)


def test_an_order_leaves_when_its_time_is_up():
    with running("toy") as engine:
        with pytest.raises(DeadlinePassed, match=r"0\.3 s"):
            paint_all(engine, [order(request(1, steps=900), timeout_s=0.3)])
        stats = engine.stats()
        assert (stats.failed, stats.running, stats.remaining_work) == (1, 0, 0)
        assert stats.wasted_steps < 900
        pictures(engine, [order(request(2))])


def test_an_order_leaves_in_time_while_it_waits_for_its_adapter():
    source = Adapters()
    source.held.add("slow")
    with running("toy", source) as engine:
        with pytest.raises(DeadlinePassed):
            paint_all(engine, [order(request(1), "slow", timeout_s=0.05)])
        source.release.set()
        assert in_use(engine) == 0
        with pytest.raises(AdapterGone):  # the load has failed by now, without ending the loop
            pictures(engine, [order(request(2), "slow")])


@pytest.mark.parametrize(
    ("wanted", "words"),
    [({"steps": 2000}, "steps 2000"), ({"steps": 2, "strength": 0.3}, "strength 0.3")],
)
def test_what_one_order_does_wrong_fails_that_order_alone(wanted, words):
    async def both(engine: Engine) -> tuple[BaseException, list[Preview | Painted]]:
        bad, good = await asyncio.gather(
            events_of(engine, order(request(1, **wanted))), events_of(engine, order(request(2))), return_exceptions=True
        )
        return bad, good

    with running("toy") as engine:
        bad, good = asyncio.run(asyncio.wait_for(both(engine), GUARD_S))
    assert isinstance(bad, InpaintError) and words in str(bad)
    assert difference(good[-1].image, by_painter("toy", request(2))) <= LEVEL


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_broken_loop_fails_all_and_says_so():
    with running("toy") as engine:

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("the device is gone")

        asyncio.run(engine.check(GUARD_S))
        engine._executor.runner.unet = broken

        async def all_of_it() -> list[object]:
            orders = [events_of(engine, order(request(i))) for i in range(3)]
            return await asyncio.wait_for(asyncio.gather(*orders, return_exceptions=True), GUARD_S)

        found = asyncio.run(all_of_it())
        assert all(isinstance(error, EngineBroken) and "the device is gone" in str(error) for error in found)
        with pytest.raises(EngineBroken, match="the device is gone"):
            asyncio.run(engine.check(GUARD_S))
        with pytest.raises(EngineBroken, match="the device is gone"):
            paint_all(engine, [order(request(1))])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_is_posted_while_the_last_turn_fails_is_done_after_it():
    entered, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def breaking(*_: object, **__: object) -> None:
        entered.set()
        assert go_on.wait(GUARD_S)
        raise RuntimeError("the device is gone")

    with running("toy") as engine:
        engine._executor.runner.unet = breaking

        async def both() -> list[object]:
            first = asyncio.ensure_future(events_of(engine, order(request(1))))
            await asyncio.to_thread(entered.wait, GUARD_S)
            second = asyncio.ensure_future(events_of(engine, order(request(2))))
            await asyncio.sleep(0)
            engine._post(lambda: done.append(threading.current_thread().name))
            go_on.set()
            return await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), GUARD_S)

        found = asyncio.run(both())
        engine._thread.join(GUARD_S)
        with pytest.raises(EngineBroken, match="the device is gone"):
            engine._post(lambda: None)
    assert done == ["engine"]
    assert all(isinstance(error, EngineBroken) and "the device is gone" in str(error) for error in found)


def test_results_and_errors_of_other_threads_come_to_the_loop():
    told: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()

    def note(what: object) -> None:
        told.put((str(what), threading.current_thread().name))

    def divide(by: int) -> float:
        assert threading.current_thread().name != "engine"
        return 6 / by

    with running("toy") as engine, ThreadPoolExecutor(1) as threads:
        for by in (3, 0):
            engine._later(threads, partial(divide, by), note, lambda error: note(type(error).__name__))
        assert told.get(timeout=GUARD_S) == ("2.0", "engine")
        assert told.get(timeout=GUARD_S) == ("ZeroDivisionError", "engine")


@pytest.mark.parametrize("longest", [0.01, 600.0])
def test_a_check_tells_a_loop_that_is_stuck_from_a_step_that_takes_long(longest):
    with running("toy", longest_turn_s=longest) as engine:
        gate = Gate(engine)
        gate.shut()
        stuck = pytest.raises(EngineBroken, match="at one turn for") if longest < 1 else contextlib.nullcontext()
        with stuck:
            asyncio.run(engine.check(0.05))
        gate.open()
        asyncio.run(engine.check(GUARD_S))


MEMORY_GONE = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize(
    ("stage", "error", "words"),
    [
        ("encode", torch.OutOfMemoryError("CUDA out of memory"), "ask for a smaller size"),
        ("advance", RuntimeError(MEMORY_GONE), "ask for a smaller size"),
        ("advance", IndexError("index 7 is out of range"), "IndexError: index 7"),
        ("decode", torch.OutOfMemoryError("CUDA out of memory"), "ask for a smaller size"),
        ("read", MemoryError("9 bytes"), "ask for a smaller size"),
    ],
)
def test_a_row_that_fails_costs_itself_alone_and_the_others_get_their_pictures(stage, error, words):
    asked = [request(i, sampler=sampler, steps=2) for i, sampler in enumerate(list(Sampler)[:3])]
    failures: list[int] = []

    async def all_of_them(engine: Engine) -> list[object]:
        orders = [events_of(engine, order(one)) for one in asked]
        return await asyncio.wait_for(asyncio.gather(*orders, return_exceptions=True), GUARD_S)

    with running("toy") as engine:
        real = getattr(engine._executor, stage)

        def sick(given: object) -> object:
            some = given if isinstance(given, list) else [given]
            orders = [one if isinstance(one, PaintOrder) else getattr(one, "job", one).order for one in some]
            if any(one.request.seed == 1 for one in orders):
                failures.append(len(orders))
                raise error
            return real(given)

        setattr(engine._executor, stage, sick)
        found = asyncio.run(all_of_them(engine))
        stats = engine.stats()
    assert isinstance(found[1], Unpaintable) and words in str(found[1])
    assert found[1].__traceback__ is None or "sick" not in str(found[1].__traceback__.tb_frame), "a frame holds tensors"
    assert stage == "read" or failures[-1] == 1
    for one, events in zip(asked[::2], found[::2], strict=True):
        assert difference(events[-1].image, by_painter("toy", one)) <= LEVEL
    assert (stats.failed, stats.painted, stats.running) == (1, 2, 0)


def test_where_only_so_many_rows_fit_no_more_step_together_and_all_are_painted():
    asked = [request(i, steps=4) for i in range(4)]
    widths: list[int] = []
    with running("toy") as engine:
        real = engine._executor.runner.unet

        def small(latents: torch.Tensor, *arguments: object, **settings: object) -> object:
            widths.append(len(latents))
            if len(latents) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(latents, *arguments, **settings)

        engine._executor.runner.unet = small
        painted = pictures(engine, [order(one) for one in asked])
        assert engine.stats().failed == 0
    for one, picture in zip(asked, painted, strict=True):
        assert difference(picture, by_painter("toy", one)) <= LEVEL
    too_wide = [index for index, width in enumerate(widths) if width > 2]
    assert 0 < len(too_wide) <= 2 and max(too_wide) < 6, "it was learned, not found anew at each step"


def test_a_step_that_failed_once_is_taken_again_from_where_the_rows_stood():
    asked = [request(i, sampler=sampler, steps=4) for i, sampler in enumerate(list(Sampler)[-3:])]
    with running("toy") as engine:
        real, calls = engine._executor.runner.unet, iter(range(1000))

        def flaky(*arguments: object, **settings: object) -> object:
            if next(calls) % 4 == 3:
                raise RuntimeError("once in a while")
            return real(*arguments, **settings)

        engine._executor.runner.unet = flaky
        painted = pictures(engine, [order(one) for one in asked])
    for one, picture in zip(asked, painted, strict=True):
        assert difference(picture, by_painter("toy", one)) <= LEVEL


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("memory is full"), RuntimeError(MEMORY_GONE), RuntimeError("the device is gone")]
)
def test_a_check_says_what_its_step_raised_and_the_loop_goes_on_where_memory_ran_out(error):
    def broken() -> None:
        raise error

    with running("toy") as engine:
        engine._executor.check = broken
        with pytest.raises(type(error), match=re.escape(str(error))):
            asyncio.run(engine.check(GUARD_S))
        if "memory" in str(error):
            assert len(pictures(engine, [order(request(1))])) == 1
        else:
            with pytest.raises(EngineBroken, match=str(error)):
                paint_all(engine, [order(request(1))])


def test_draining_paints_what_was_ordered():
    engine = Engine(_executor())
    engine.start()
    gate = Gate(engine)
    gate.shut()

    async def drain() -> list[Preview | Painted]:
        painting = asyncio.ensure_future(events_of(engine, order(request(1))))
        await asyncio.to_thread(gate.arrived.acquire)
        closing = asyncio.ensure_future(asyncio.to_thread(engine.close, True))
        gate.open()
        await closing
        return await painting

    events = asyncio.run(asyncio.wait_for(drain(), GUARD_S))
    assert difference(events[-1].image, by_painter("toy", request(1))) <= LEVEL
    with pytest.raises(EngineBroken, match="was closed"):
        paint_all(engine, [order(request(2))])


def test_closing_without_draining_fails_what_is_there():
    engine = Engine(_executor())
    engine.start()
    gate = Gate(engine)
    gate.shut()

    async def close() -> None:
        painting = asyncio.ensure_future(events_of(engine, order(request(1))))
        await asyncio.to_thread(gate.arrived.acquire)
        closing = asyncio.ensure_future(asyncio.to_thread(engine.close, False))
        gate.open()
        await closing
        with pytest.raises(EngineBroken):
            await painting

    asyncio.run(asyncio.wait_for(close(), GUARD_S))


def _executor() -> TorchExecutor:
    return TorchExecutor(load_base("toy"), EngineSettings(), Adapters().load)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_rows": 1}, "max_rows"),
        ({"slots": 0}, "slots"),
        ({"batch_sizes": (4, 2)}, "batch_sizes"),
        ({"batch_sizes": (4, 8)}, "max_rows 16"),
        ({"compile": True}, "batch_sizes"),
        ({"compile_shapes": ((64, 64),)}, "no effect without compile"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, words):
    with pytest.raises(ValidationError, match=words):
        EngineSettings(**settings)
