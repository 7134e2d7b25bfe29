"""Orders with a control picture share the engine's ticks with others, and get the painter's pictures."""

from dataclasses import replace

import pytest

from inpaint.errors import InpaintError
from inpaint.models.base import load_base
from inpaint.paint.painter import Painter
from inpaint.serve.engine.engine import Engine
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.engine.torch_executor import TorchExecutor
from tests.tiny import tiny_sd_inpaint, tiny_sdxl_inpaint
from tests.unit.paint.examples import control, controlnet_of
from tests.unit.serve.engines import (
    LEVEL,
    Adapters,
    by_painter,
    difference,
    order,
    paint_all,
    pictures,
    request,
    running,
)

WANTED = [
    request(1, 32, 32),
    request(2, 32, 32, control=control(2)),
    request(3, 32, 32, guidance_scale=3.0, control=control(3, scale=0.5)),
    request(4, 32, 32, guidance_scale=3.0, steps=5),
    request(5, 48, 24, control=control(5, height=48, width=24), steps=4),
]


@pytest.fixture(scope="module", params=[tiny_sd_inpaint, tiny_sdxl_inpaint])
def base(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("base") / "base")


class Counted:
    """A ControlNet that counts the rows which it sees."""

    def __init__(self, net):
        self.net, self.seen = net, []

    def __call__(self, latents, *arguments, **settings):
        self.seen.append(len(latents))
        return self.net(latents, *arguments, **settings)


def test_orders_with_and_without_a_control_picture_share_ticks(base):
    loaded = load_base(base)
    net = controlnet_of(loaded)
    painter = Painter(loaded, controlnet=net)
    with running(base, controlnet=controlnet_of(loaded), batch_sizes=(8, 16)) as engine:
        events = paint_all(engine, [order(wanted) for wanted in WANTED])
    for wanted, (painted,) in zip(WANTED, events, strict=True):
        assert difference(painted.image, painter.paint([wanted])[0]) <= LEVEL
        assert painted.kept_pixels_changed == 0
    assert events[0][0].batch_rows > 1, "they never shared a tick"
    without = by_painter(base, replace(WANTED[1], control=None))
    assert difference(events[1][0].image, without) > 10 * LEVEL, "it adds nothing, so equality says nothing"


def test_only_rows_with_a_control_picture_cost_a_forward_of_it(tmp_path):
    folder = tiny_sd_inpaint(tmp_path / "base")
    with running(folder, controlnet=controlnet_of(load_base(folder))) as engine:
        counted = engine._executor.runner.controlnet = Counted(engine._executor.runner.controlnet)
        pictures(engine, [order(WANTED[0]), order(WANTED[3])])
        assert not counted.seen
        pictures(engine, [order(WANTED[0]), order(WANTED[2]), order(WANTED[3])])
        assert counted.seen == [2] * WANTED[2].sampling.steps_taken


def test_without_a_controlnet_a_control_picture_is_refused(tmp_path):
    with running(tiny_sd_inpaint(tmp_path / "base")) as engine, pytest.raises(InpaintError, match="no ControlNet"):
        pictures(engine, [order(WANTED[1])])


def test_with_a_controlnet_both_kinds_of_steps_are_compiled_before_it_is_ready(tmp_path, monkeypatch):
    seen = []

    def compiled(unet, **_):
        def call(latents, *arguments, **settings):
            seen.append((len(latents), "mid_block_additional_residual" in settings))
            return unet(latents, *arguments, **settings)

        return call

    monkeypatch.setattr("torch.compile", compiled)
    settings = EngineSettings(compile=True, slots=2, max_rank=4, max_rows=4, batch_sizes=(2, 4))
    base = load_base(tiny_sd_inpaint(tmp_path / "base"))
    engine = Engine(TorchExecutor(base, settings, Adapters().load, controlnet_of(base)))
    engine.start()
    engine.close(drain=False)
    assert seen == [(2, False), (4, False), (2, True), (4, True)]
