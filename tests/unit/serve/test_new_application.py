"""A new application is one file, `tests/jobs/own_application.py`; keys, limits, receipts and errors come along.

`tests/jobs/test_serve.py` runs it on Ray Serve.
"""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.http.receipt import read_receipt
from tests.jobs import own_application
from tests.jobs.own_application import EnlargeApplication, EnlargeArgs
from tests.unit.data.images import picture
from tests.unit.serve.clients import b64, told
from tests.unit.serve.fake import photo_png

KEY = "shop-0123456789abcdef"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("INPAINT_API_KEYS", f"shop:{KEY}")
    settings = HttpSettings(host="0.0.0.0", max_pixels=5_000)
    app = EnlargeApplication(EnlargeArgs(http=settings), "cpu").http()
    with TestClient(app, headers={"x-api-key": KEY}) as client:
        yield client


def test_it_takes_at_most_80_lines() -> None:
    assert len(Path(own_application.__file__).read_text().splitlines()) <= 80


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
    assert fields["factor"]["maximum"] == 4 and "feather" not in fields, "there is no hole"
    client.headers.pop("x-api-key")
    assert told("own", client.post("/enlarge", files={"image": photo_png()})).status == 401
    assert client.get("/ready").status_code == 200
