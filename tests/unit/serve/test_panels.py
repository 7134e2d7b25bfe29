"""Panels of a composite as fields of a request, in place of a mask."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from inpaint.data.panels import ChosenPanels
from inpaint.export.adapter_folder import save_adapter
from inpaint.models.adapter import apply_adapter
from inpaint.models.base import load_base, read_base_info
from inpaint.paint.painter import Painter
from inpaint.paint.request import WHOLE, PaintRequest, SamplingSettings
from inpaint.serve.adapters.registry import Registry
from inpaint.serve.admission import Admission
from inpaint.serve.apps.paint import PaintArgs
from inpaint.serve.dialects.paint_http import paint_http
from inpaint.serve.dispatcher import Dispatcher
from inpaint.serve.engine.engine import Engine
from inpaint.serve.engine.torch_executor import TorchExecutor
from inpaint.serve.http.limits import HttpSettings
from tests.adapters import made_up, without_tokens
from tests.tiny import tiny_sdxl_inpaint
from tests.unit.serve.clients import b64
from tests.unit.serve.engines import LEVEL
from tests.unit.serve.fake import FakeService, alpha_png, mask_png


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> Iterator[TestClient]:
    with TestClient(paint_http(service, HttpSettings())) as client:
        yield client


def _composite() -> bytes:
    """Panels of 30 pixels, gutters of 4."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    image[30:34] = image[:, 30:34] = 255
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("as_form", [True, False])
def test_panels_are_painted_in_place_of_a_mask_and_gutters_are_kept(client, service, as_form):
    image = _composite()
    if as_form:
        response = client.post("/paint", files={"image": image}, data={"panels": "1, 2", "feather": "3"})
    else:
        response = client.post("/paint", json={"image": b64(image), "panels": [1, 2], "feather": 3})
    assert response.status_code == 200
    request = service.orders[-1].request
    hole = np.zeros((64, 64), bool)
    hole[:30, 34:] = hole[34:, :30] = True
    assert (request.hole == hole).all()
    assert (request.sampling.padding, request.sampling.feather) == ("whole", 3)


def test_a_grid_without_panels_is_told_to_be_for_nothing(client):
    response = client.post("/paint", data={"grid": "1x4", "answer": "json"}, files={"image": alpha_png()})
    assert response.json()["warnings"] == ["grid has no effect without panels"]


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"panels": "4"}, "panels", "panel 4: a grid of 2x2 has the panels 0 to 3"),
        ({"panels": "0,1,2,3"}, "panels", "leave one to be seen"),
        ({"panels": "x"}, "panels", "x"),
        ({"panels": "1", "grid": "2by2"}, "panels", "grid '2by2'"),
        ({"panels": "1", "grid": "1x3"}, "image", "its gutters make 2 rows"),
    ],
)
def test_panels_that_are_not_there_are_told(client, fields, field, message):
    response = client.post("/paint", files={"image": _composite()}, data=fields)
    assert response.status_code in (400, 422)
    assert response.json()["field"] == field and message in response.json()["detail"]


def test_panels_and_a_mask_are_not_both_taken(client):
    response = client.post("/paint", files={"image": _composite(), "mask": mask_png()}, data={"panels": "1"})
    assert response.status_code == 400 and response.json()["field"] == "mask"


def test_the_panels_application_paints_with_a_folder_as_base_and_the_adapters_of_a_run(tmp_path):
    """All that its configuration makes, but for the processes that Serve puts it into."""
    base, composite = tiny_sdxl_inpaint(tmp_path / "base", in_channels=4), _composite()
    adapter = without_tokens(made_up(base, 0))
    save_adapter(tmp_path / "adapters" / "panels", adapter)
    registry = {"root": str(tmp_path / "adapters"), "cache": str(tmp_path / "copies"), "max_rank": 64}
    args = PaintArgs(base=str(base), registry=registry, engine={"max_rank": 64})
    info = read_base_info(args.base)
    known = Registry(args.registry_settings, info)
    known.poll()
    assert known.refused() == {}
    load = args.registry_settings.open_cache(info).load
    engine = Engine(TorchExecutor(load_base(args.base), args.engine, load))
    engine.start()
    try:
        call = lambda order, files: engine.paint(order)  # noqa: E731
        dispatcher = Dispatcher(args.served(info), known, Admission(args.admission), call)
        with TestClient(paint_http(dispatcher, args.http)) as client:
            fields = {"panels": "1,2", "adapters": "panels", "prompt": "red", "seed": "3", "steps": "2", "feather": "3"}
            response = client.post("/paint", files={"image": composite}, data=fields)
    finally:
        engine.close(drain=False)
    assert response.status_code == 200, response.text
    before, after = (np.asarray(Image.open(io.BytesIO(data))) for data in (composite, response.content))
    hole = ChosenPanels((1, 2)).hole(before)
    assert (after[~hole] == before[~hole]).all() and (after != before).any(-1)[hole].mean() > 0.8
    sampling = SamplingSettings(steps=2, padding=WHOLE, feather=3)
    alone = load_base(base)
    apply_adapter(alone, adapter)
    (wanted,) = Painter(alone).paint([PaintRequest(image=before, hole=hole, prompt="red", seed=3, sampling=sampling)])
    assert np.abs(wanted.astype(int) - after).max() <= LEVEL
