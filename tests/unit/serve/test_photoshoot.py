"""Products are found and enhanced over HTTP; what has none comes back as it was sent, and nothing is painted."""

import base64
import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from inpaint.paint.crop import seen
from inpaint.serve.dialects.paint_http import paint_http
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.service import Overloaded
from inpaint.vision.boxes import box_of
from inpaint.vision.finder import Findings, FindQuery, Found
from tests.unit.serve.fake import BASE, BLUE, FakeService

PLACE = np.s_[16:40, 20:44]


class FakeVision:
    """Finds a `shoe` where a photo is red; edges are its inverse."""

    def __init__(self) -> None:
        self.fails: Exception | None = None
        self.controls = True
        self.asked: list[FindQuery] = []

    async def find(self, image: np.ndarray, query: FindQuery) -> Findings:
        if self.fails is not None:
            raise self.fails
        self.asked.append(query)
        mask = (image == (255, 0, 0)).all(axis=2)
        best = {product.name: 0.9 if product.name == "shoe" and mask.any() else 0.1 for product in query.products}
        found = [Found(product="shoe", score=0.9, box=box_of(mask), mask=mask)] if max(best.values()) > 0.5 else []
        return Findings(found=tuple(found), best=best)

    async def control(self, image: np.ndarray) -> np.ndarray | None:
        return 255 - image if self.controls else None


@pytest.fixture
def vision() -> FakeVision:
    return FakeVision()


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service: FakeService, vision: FakeVision) -> Iterator[TestClient]:
    with TestClient(paint_http(service, HttpSettings(), vision=vision)) as client:
        yield client


def photo(*, shoe: bool = True, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 200, (64, 64, 3), dtype=np.uint8)
    if shoe:
        pixels[PLACE] = (255, 0, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def test_what_is_found_is_told_with_its_mask(client, vision):
    form = {"products": "shoe, hand bag|purse:0.4", "negatives": "picture of a shoe"}
    answered = client.post("/find", files={"image": photo()}, data=form)
    assert answered.status_code == 200
    told = answered.json()
    assert told["found"] and told["products"] == [{"product": "shoe", "score": 0.9, "box": [20, 16, 44, 40]}]
    assert told["best"] == {"shoe": 0.9, "hand bag": 0.1}
    assert vision.asked == [FindQuery.parse(["shoe", "hand bag|purse:0.4"], ["picture of a shoe"])]
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(told["mask"]))).convert("L"))
    assert mask[PLACE].min() == 255 and mask.sum() == 255 * 24 * 24


def test_nothing_found_is_an_answer(client):
    told = client.post("/find", files={"image": photo(shoe=False)}, data={"products": "shoe"}).json()
    assert (told["found"], told["products"], told["mask"], told["best"]) == (False, [], None, {"shoe": 0.1})


def test_the_product_alone_is_repainted_with_a_control_picture(client, service):
    form = {"products": "shoe,watch", "prompt": "a blue {product}", "conditioning_scale": "0.7", "seed": "3"}
    answered = client.post("/enhance", files={"image": photo()}, data=form)
    assert answered.status_code == 200 and answered.headers["x-skipped"] == "false"
    before, after = (np.asarray(Image.open(io.BytesIO(data))) for data in (photo(), answered.content))
    assert (after[PLACE] == BLUE).all()
    hole = np.zeros((64, 64), bool)
    hole[PLACE] = True
    assert np.array_equal(before[~hole], after[~hole])
    (order,) = service.orders
    assert order.request.prompt == "a blue shoe" and np.array_equal(order.request.hole, hole)
    control = order.request.control
    assert control.scale == 0.7 and np.array_equal(control.image, 255 - seen(BASE, order.request))


def test_several_pictures_and_adapters_go_as_with_paint(client, service):
    form = {"products": ["shoe"], "n": 2, "category": "CDP_FOOD", "image": base64.b64encode(photo()).decode()}
    told = client.post("/enhance", json=form).json()
    assert told["skipped"] is False and [one["number"] for one in told["images"]] == [0, 1]
    assert {use.name for order in service.orders for use in order.adapters} == {"CDP_FOOD"}
    assert service.orders[0].request.prompt == "CDP_FOOD background, shoe"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_photo_without_a_product_comes_back_as_it_was_sent_and_nothing_is_painted(client, service, form):
    sent = photo(shoe=False, form=form)
    answered = client.post("/enhance", files={"image": sent}, data={"products": "shoe"})
    assert answered.status_code == 200 and answered.headers["x-skipped"] == "true"
    assert answered.content == sent and answered.headers["content-type"] == f"image/{form.lower()}"
    told = client.post("/enhance", files={"image": sent}, data={"products": "shoe", "answer": "json"}).json()
    assert told["skipped"] is True and told["best"] == {"shoe": 0.1}
    assert base64.b64decode(told["images"][0]["b64"]) == sent
    assert not service.orders


def test_where_no_controlnet_is_served_products_are_painted_without(client, service, vision):
    vision.controls = False
    assert client.post("/enhance", files={"image": photo()}, data={"products": "shoe"}).status_code == 200
    assert service.orders[0].request.control is None


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({}, "products"),
        ({"products": ""}, "products"),
        ({"products": "shoe,shoe"}, "products"),
        ({"products": "shoe:2"}, "products"),
        ({"products": ",".join(map(str, range(33)))}, "products"),
        ({"products": "shoe", "mask": "x"}, "mask"),
        ({"products": "shoe", "n": "2", "answer": "image"}, "answer"),
        ({"products": "shoe", "stream": "true"}, "stream"),
    ],
)
def test_what_cannot_be_asked_is_told_by_its_field(client, service, vision, form, field):
    answered = client.post("/enhance", files={"image": photo()}, data=form)
    assert answered.status_code == 400 and answered.json()["field"] == field
    assert not vision.asked and not service.orders


def test_a_finder_that_has_too_much_to_do_says_when_to_come_back(client, vision):
    vision.fails = Overloaded("the finder is busy", 3.0)
    for path in ("/find", "/enhance"):
        answered = client.post(path, files={"image": photo()}, data={"products": "shoe"})
        assert answered.status_code == 429 and answered.headers["retry-after"] == "3"
