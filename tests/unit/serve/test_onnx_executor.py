"""An engine on ONNX Runtime paints what the torch engine paints, and refuses by name what it cannot."""

import asyncio
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from starlette.testclient import TestClient

from inpaint.diffusion.noise_levels import StepSchedule
from inpaint.diffusion.samplers import Sampler
from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import save_adapter
from inpaint.export.onnx.base import export_base
from inpaint.models.adapter import Adapter
from inpaint.models.base import load_base, read_base_info
from inpaint.paint.request import Control, PaintRequest, SamplingSettings, Start
from inpaint.serve.adapters.registry import Registry
from inpaint.serve.admission import Admission
from inpaint.serve.apps import photoshoot
from inpaint.serve.apps.paint import PaintArgs
from inpaint.serve.deployments import painters
from inpaint.serve.dialects.paint_http import paint_http
from inpaint.serve.dispatcher import Dispatcher
from inpaint.serve.engine.engine import Engine, EngineBroken
from inpaint.serve.engine.onnx_executor import OnnxExecutor
from inpaint.serve.engine.scheduler import Outcome
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.service import AdapterGone, DeadlinePassed, PaintOrder, Preview
from tests.adapters import made_up, without_tokens
from tests.tiny import tiny_sd_inpaint, tiny_sdxl_inpaint
from tests.unit.serve.clients import b64
from tests.unit.serve.engines import (
    GUARD_S,
    LEVEL,
    Adapters,
    by_painter,
    cancel_in_its_fourth_step,
    difference,
    in_use,
    order,
    paint_all,
    pictures,
    request,
    running,
    varied,
)

LONG = "a red box, the woo, re the " * 9
MAKERS = {"nine": tiny_sd_inpaint, "four": lambda folder: tiny_sdxl_inpaint(folder, in_channels=4)}


@pytest.fixture(scope="module", params=MAKERS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with 9 input channels, and SDXL with 4; its export beside it."""
    return exported(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("nine", tmp_path_factory)


_MADE: dict[str, Path] = {}


def exported(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Once for the module."""
    if name not in _MADE:
        root = tmp_path_factory.mktemp(name)
        (root / "onnx").mkdir()
        export_base(load_base(MAKERS[name](root / "base")), root / "onnx")
        _MADE[name] = root / "base"
    return _MADE[name]


def executor_of(base: Path, source: Adapters | None = None, **settings: object) -> OnnxExecutor:
    load, info = (source or Adapters()).load, read_base_info(str(base))
    return OnnxExecutor(base.parent / "onnx", info, "fp32", EngineSettings(**settings), load, threads=1)


@contextmanager
def running_onnx(base: Path, source: Adapters | None = None, **settings: object) -> Iterator[Engine]:
    engine = Engine(executor_of(base, source, **settings))
    engine.start()
    try:
        yield engine
    finally:
        engine.close(drain=False)


def small(seed: int = 0, **settings: object) -> PaintRequest:
    return request(seed, **{"height": 32, "width": 32, **settings})


def adapters_of(base: Path) -> dict[str, Adapter]:
    """Of two ranks; one with a token of two vectors, which `CDP_X` finds in prompts."""
    first = made_up(base, 1, rank=3, tokens=("cdp", "cdp_1"))
    return {"a": varied(first, 1), "b": varied(made_up(base, 2, rank=2), 2)}


def kinds(*, is_xl: bool) -> list[PaintOrder]:
    """Orders of all kinds that both engines take."""
    samplers = [order(small(i, sampler=s, guidance_scale=3.0 - 2 * (i % 2))) for i, s in enumerate(Sampler)]
    starts = [order(small(20 + i, steps=4, strength=0.6, start=start)) for i, start in enumerate(Start)]
    others = [
        order(small(30, sampler=Sampler.DPMPP_2M, schedule=StepSchedule.KARRAS, steps=4, strength=0.8)),
        order(small(31, height=40, width=60, feather=2)),
        order(small(32, height=90, width=70, padding=10, guidance_scale=2.0, negative_prompt="the wood")),
        order(small(33, prompt=LONG, guidance_scale=2.0)),
        order(small(34, prompt=LONG, prompt_chunks=1)),
        order(small(36, steps=4), previews=2),
        order(small(37, prompt="cdp background, a box", guidance_scale=2.0), "a"),
        order(small(38, prompt="CDP_X background", negative_prompt="CDP_X"), ("b", 0.4)),
        order(small(39, prompt="cdp, " + LONG, prompt_weights=True), "a"),
    ]
    text = PaintRequest.of_text(
        "a red box",
        height=32,
        width=32,
        seed=5,
        sampling=SamplingSettings(steps=3, guidance_scale=2.0, sampler=Sampler.EULER_ANCESTRAL),
    )
    if is_xl:
        # Weights divide by the mean of the states, which is 0 behind a layer norm that was never trained.
        words = "a (red:1.4) box BREAK [wood], the"
        others.append(order(small(35, prompt=words, negative_prompt="(re)", prompt_weights=True, guidance_scale=2.0)))
    return [replace(one, id=str(i)) for i, one in enumerate([*samplers, *starts, *others, order(text)])]


def test_orders_of_all_kinds_get_the_torch_engines_pictures(base: Path) -> None:
    asked, source = kinds(is_xl=read_base_info(str(base)).is_xl), Adapters(adapters_of(base))
    found = []
    for engine_of in (running, running_onnx):
        with engine_of(base, source) as engine:
            decoded: dict[tuple[str, int | None], np.ndarray] = {}
            decode = engine._executor.decode

            def seen(pictures: list[Outcome], decode=decode, decoded=decoded) -> object:
                images_B3HW, done = decode(pictures)
                names = [(picture.job.order.id, picture.index) for picture in pictures]
                decoded.update(zip(names, images_B3HW.numpy(), strict=True))
                return images_B3HW, done

            engine._executor.decode = seen
            found.append((paint_all(engine, asked), decoded))
            stats = engine.stats()
    (wanted, ours), (painted, theirs) = found
    assert ours.keys() == theirs.keys()
    apart = {name: float(np.abs(ours[name] - theirs[name]).max()) for name in ours}
    assert all(value <= 1e-3 for value in apart.values()), apart
    for one, expected, events in zip(asked, wanted, painted, strict=True):
        assert [type(event) for event in events] == [type(event) for event in expected]
        assert difference(events[-1].image, expected[-1].image) <= LEVEL
        assert (events[-1].image[~one.request.hole] == one.request.image[~one.request.hole]).all()
        assert (events[-1].tokens_cut, events[-1].steps) == (expected[-1].tokens_cut, expected[-1].steps)
    assert [isinstance(event, Preview) for events in painted for event in events].count(True) == 2
    assert stats.painted == len(asked) and (stats.queued, stats.running, stats.remaining_work) == (0, 0, 0)
    assert painted[16][-1].tokens_cut > 0, "nothing was cut, so that it is told proves nothing"


def test_each_order_has_its_own_adapter_and_a_slot_is_given_to_who_comes_next(nine: Path) -> None:
    source = Adapters(adapters_of(nine))
    asked = [order(small(1, prompt="cdp background, CDP_X"), digest) for digest in "abab"]
    with running_onnx(nine, source, slots=1) as engine:
        painted = pictures(engine, asked)
        stats = engine.stats()
        assert engine.resident() == {source.loaded[-1]}
    for one, picture in zip("abab", painted, strict=True):
        assert difference(picture, by_painter(nine, asked[0].request, source.adapters[one])) <= LEVEL
    assert difference(painted[0], painted[1]) > LEVEL, "adapters that paint alike would prove nothing"
    # Those of one adapter go together.
    assert stats.adapter_loads == len(source.loaded) == stats.adapter_evictions + 1 == 2


def test_what_it_cannot_paint_is_refused_by_name(nine: Path) -> None:
    adapters = adapters_of(nine)
    card = replace(adapters["a"].card, base="another", base_revision="0" * 64)
    source = Adapters({**adapters, "other": replace(adapters["a"], card=card)})
    wanted = small(1)
    controlled = replace(wanted, control=Control(image=wanted.image))
    refusals = [
        (order(controlled), InpaintError, "control: .*ONNX.*leave the picture out"),
        (order(wanted, "a", "b"), InpaintError, "adapters a, b: .* one in an order"),
        (order(wanted, "other"), InpaintError, "base another at 000000000000"),
        (order(wanted, "gone"), AdapterGone, "gone"),
        (order(small(1, steps=2000)), InpaintError, "steps 2000"),
    ]
    with running_onnx(nine, source, max_rank=3) as engine:
        for asked, kind, words in refusals:
            with pytest.raises(kind, match=words):
                paint_all(engine, [asked])
        assert (engine.stats().failed, in_use(engine)) == (len(refusals), 0)
        assert difference(pictures(engine, [order(wanted)])[0], by_painter(nine, wanted)) <= LEVEL
    with running_onnx(nine, source, max_rank=2) as engine, pytest.raises(InpaintError, match="rank 3"):
        paint_all(engine, [order(wanted, "a")])


def test_a_cancelled_order_takes_no_further_step_and_the_next_one_is_painted(nine: Path) -> None:
    with running_onnx(nine) as engine:
        assert cancel_in_its_fourth_step(engine, order(small(1, steps=50)), order(small(2, steps=2))) == 4 + 2
        stats = engine.stats()
    assert (stats.cancelled, stats.wasted_steps, stats.painted) == (1, 4, 1)


def test_an_order_leaves_when_its_time_is_up(nine: Path) -> None:
    with running_onnx(nine) as engine:
        with pytest.raises(DeadlinePassed, match=r"0\.2 s"):
            paint_all(engine, [order(small(1, steps=900), timeout_s=0.2)])
        assert engine.stats().wasted_steps < 900
        assert len(pictures(engine, [order(small(2))])) == 1


def test_a_step_that_failed_once_is_taken_again_from_where_the_rows_stood(nine: Path) -> None:
    asked = [small(i, sampler=sampler, steps=4) for i, sampler in enumerate(list(Sampler)[-3:])]
    with running_onnx(nine) as engine:
        real, calls = engine._executor.painter.step, iter(range(1000))

        def flaky(row: object) -> object:
            if next(calls) % 5 == 4:
                raise RuntimeError("once in a while")
            return real(row)

        engine._executor.painter.step = flaky
        painted = pictures(engine, [order(one) for one in asked])
    for one, picture in zip(asked, painted, strict=True):
        assert difference(picture, by_painter(nine, one)) <= LEVEL


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_its_health_is_a_step_of_the_unet(nine: Path) -> None:
    with running_onnx(nine) as engine:
        asyncio.run(engine.check(GUARD_S))
        real = engine._executor.painter.step
        engine._executor.painter.step = lambda row: replace(real(row), latents=np.full_like(row.latents, np.nan))
        with pytest.raises(AssertionError, match="not finite"):
            asyncio.run(engine.check(GUARD_S))
        with pytest.raises(EngineBroken):
            paint_all(engine, [order(small(1))])


@pytest.mark.parametrize(
    ("change", "precision", "words"),
    [
        ({"revision": "0" * 64, "base": "another"}, "fp32", "another at 000000000000, served is .* at [0-9a-f]{12}"),
        ({}, "fp16", "precision fp16: .* is in torch.float32"),
        ({"version": 1}, "fp32", "written as version 1.*export again"),
        (None, "fp32", "no export of a base"),
    ],
)
def test_an_export_that_is_not_the_bases_is_refused_at_the_start(
    nine: Path, tmp_path: Path, change: dict[str, object] | None, precision: str, words: str
) -> None:
    if change is not None:
        about = json.loads((nine.parent / "onnx" / "base.json").read_text())
        (tmp_path / "base.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(InpaintError, match=words):
        OnnxExecutor(tmp_path, read_base_info(str(nine)), precision, EngineSettings(), Adapters().load, threads=1)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"controlnet": "toy-edges"}, "controlnet toy-edges"),
        ({"device": "cuda"}, "device cuda"),
        ({"engine": {"slots": 4, "max_rows": 8}}, "engine.max_rows: no effect"),
    ],
)
def test_arguments_without_effect_on_onnx_runtime_are_refused(args: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PaintArgs(onnx="export/onnx", **args)


def test_the_folder_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert PaintArgs(onnx="export/onnx").anywhere.onnx == str(tmp_path / "export/onnx")
    assert PaintArgs(onnx="s3://bucket/onnx").anywhere.onnx == "s3://bucket/onnx"
    app = photoshoot.build(photoshoot.PhotoshootArgs(onnx="export/onnx", controlnet=None))
    assert app._bound_deployment.init_args[0].onnx == str(tmp_path / "export/onnx")


def test_the_same_endpoints_and_registry_are_served_without_the_bases_weights(
    nine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that its configuration makes, but for the processes that Serve puts it into."""
    adapter = adapters_of(nine)["b"]
    save_adapter(tmp_path / "adapters" / "C0", adapter)
    save_adapter(tmp_path / "adapters" / "other", without_tokens(adapter))
    registry = {"root": str(tmp_path / "adapters"), "cache": str(tmp_path / "copies")}
    args = PaintArgs(base=str(nine), onnx=str(nine.parent / "onnx"), registry=registry)
    monkeypatch.setattr(painters, "own_threads", lambda threads: 1)
    monkeypatch.setattr(painters, "load_base", None)
    executor, _ = painters._on_onnx(args, str(args.onnx))
    known = Registry(args.registry_settings, executor.info)
    known.poll()
    engine = Engine(executor)
    engine.start()
    wanted = small(3, prompt="CDP_X background, a box", steps=2, guidance_scale=7.5)
    files = {name: _png(image) for name, image in (("image", wanted.image), ("mask", wanted.hole))}
    try:
        call = lambda order, files: engine.paint(order)  # noqa: E731
        dispatcher = Dispatcher(args.served(executor.info), known, Admission(args.admission), call)
        with TestClient(paint_http(dispatcher, args.http)) as client:
            fields = {"category": "C0", "prompt": "a box", "seed": "3", "steps": "2"}
            answer = client.post("/paint", files=files, data=fields)
            form = {"init_images": [b64(files["image"])], "mask": b64(files["mask"]), "prompt": "a (red) box"}
            other = client.post("/sdapi/v1/img2img", json={**form, "steps": 3, "seed": 1})
            both = client.post("/paint", files=files, data={**fields, "category": "", "adapters": "C0,other"})
    finally:
        engine.close(drain=False)
    assert answer.status_code == other.status_code == 200, (answer.text, other.text)
    assert answer.headers["x-adapter-digest"] == known.catalogue()["C0"].digest
    painted = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert difference(painted, by_painter(nine, wanted, adapter)) <= LEVEL
    assert both.status_code == 400 and re.search("C0, other.*one in an order", both.json()["detail"])


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
