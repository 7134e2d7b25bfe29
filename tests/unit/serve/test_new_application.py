"""An HTTP application in few lines: its fields, work and answer; keys, limits, receipts and errors come along."""

import io
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Annotated

import numpy as np
import pytest
from PIL import Image
from starlette.responses import Response
from starlette.testclient import TestClient

from inpaint.serve.batcher import Batcher
from inpaint.serve.http.application import build_http
from inpaint.serve.http.endpoint import Call, Encoded, Endpoint
from inpaint.serve.http.images import read_photo
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.http.receipt import Receipt, encode, read_receipt
from inpaint.serve.http.record import Record
from inpaint.serve.http.resources import Resources
from inpaint.serve.http.schema import PictureFields, Upload, Within
from tests.unit.data.images import picture
from tests.unit.serve.clients import b64, told
from tests.unit.serve.fake import photo_png

KEY = "shop-0123456789abcdef"


# The application, all of it.
EnlargeCall = Call[tuple[np.ndarray, int]]


class EnlargeFields(PictureFields):
    """What `POST /enlarge` takes."""

    image: Upload
    """The photo."""
    factor: Annotated[int, Within(1, 4)] = 2
    """Times larger."""


class EnlargeEndpoint(Endpoint[EnlargeFields, EnlargeCall, np.ndarray]):
    """Enlarge a photo"""

    path = "/enlarge"
    fields = EnlargeFields

    def __init__(self, resources: Resources) -> None:
        super().__init__(resources)
        self.batcher: Batcher[tuple[np.ndarray, int], np.ndarray] = Batcher(enlarge)

    def read(self, fields: EnlargeFields) -> EnlargeCall:
        image = read_photo(fields.image, "image", self.settings, 1).image
        encoding = fields.encoding(95, self.settings)
        return Call(request=(image, fields.factor), encoding=encoding, model="nearest", pixels=image[..., 0].size)

    async def submit(self, call: EnlargeCall, record: Record) -> AsyncGenerator[np.ndarray, None]:
        yield await self.batcher.submit(call.request)

    def encode(self, call: EnlargeCall, result: np.ndarray) -> bytes:
        receipt = Receipt(base="nearest", base_revision="1", seed=0, sampling={"factor": call.request[1]})
        return encode(result, call.encoding, receipt)

    def answer(self, call: EnlargeCall, results: Sequence[Encoded[np.ndarray]]) -> Response:
        return Response(results[0].data, media_type=call.encoding.media_type)


def enlarge(requests: Sequence[tuple[np.ndarray, int]], tick: Callable[[], None]) -> list[np.ndarray]:
    tick()
    return [image.repeat(factor, axis=0).repeat(factor, axis=1) for image, factor in requests]


async def healthy() -> bool:
    return True


# What it gets for nothing.
@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("INPAINT_API_KEYS", f"shop:{KEY}")
    resources = Resources(HttpSettings(host="0.0.0.0", max_pixels=5_000))
    app = build_http("enlarging", [EnlargeEndpoint(resources)], resources, healthy)
    with TestClient(app, headers={"x-api-key": KEY}) as client:
        yield client


def test_a_form_and_json_are_answered_with_a_picture_and_its_receipt(client: TestClient) -> None:
    form = client.post("/enlarge", files={"image": photo_png()}, data={"factor": "3"})
    json = client.post("/enlarge", json={"image": b64(photo_png()), "factor": 3, "output_format": "webp"})
    assert (form.headers["content-type"], json.headers["content-type"]) == ("image/png", "image/webp")
    large = np.asarray(Image.open(io.BytesIO(form.content)))
    assert np.array_equal(large[::3, ::3], np.asarray(picture()))
    for answer in (form, json):
        assert read_receipt(answer.content).sampling == {"factor": 3}
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("sent", "status", "code", "says"),
    [
        ({"factor": 5}, 400, "out_of_range", "factor: 5; give 1 to 4"),
        ({"factor": "many"}, 400, "invalid_value", "factor: 'many' is no whole number"),
        ({"factr": 3}, 400, "unknown_field", "did you mean factor?"),
        ({"image": None}, 400, "missing", "image: missing; it is: The photo."),
        ({"image": b64(b"text")}, 400, "not_an_image", "image: "),
        ({"image": b64(photo_png(200, 100))}, 400, "too_many_pixels", "5,000"),
    ],
)
def test_bad_requests_are_told_by_field(client: TestClient, sent: dict, status: int, code: str, says: str) -> None:
    problem = told("own", client.post("/enlarge", json={"image": b64(photo_png()), **sent}))
    assert (problem.status, problem.code) == (status, code)
    assert says in problem.message


def test_keys_limits_and_other_forms_of_bodies_are_looked_after(client: TestClient) -> None:
    assert client.post("/enlarge", content=b"x").status_code == 415
    assert client.get("/enlarge").status_code == 405
    schema = client.get("/openapi.json").json()["paths"]["/enlarge"]["post"]["requestBody"]["content"]
    fields = schema["multipart/form-data"]["schema"]["properties"]
    assert fields["factor"]["maximum"] == 4 and fields["feather"]["maximum"] == HttpSettings().max_feather
    client.headers.pop("x-api-key")
    assert told("own", client.post("/enlarge", files={"image": photo_png()})).status == 401
    assert client.get("/ready").status_code == 200
