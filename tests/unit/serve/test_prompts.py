"""How the dialects read prompts, and what they say of those that are too long."""

import json
import re

import pytest
from starlette.testclient import TestClient

from inpaint.serve.dialects.paint_http import paint_http
from inpaint.serve.http.limits import HttpSettings
from tests.unit.serve.clients import DIALECTS, ask
from tests.unit.serve.fake import FakeService


@pytest.fixture
def service():
    return FakeService()


@pytest.fixture
def client(service):
    with TestClient(paint_http(service, HttpSettings())) as client:
        yield client


@pytest.mark.parametrize("dialect", DIALECTS)
def test_prompts_that_are_too_long_are_told_to_the_client(client, dialect):
    fits = ask(client, dialect, prompt="red " * 70)
    assert "no effect" not in fits.headers.get("x-warnings", "") and fits.status_code == 200
    told = ask(
        client, dialect, prompt="red " * 240, prompt_chunks=2, **({"answer": "json"} if dialect == "own" else {})
    )
    assert re.search(r"prompts are too long: their last 9\d tokens have no effect", told.headers["x-warnings"])
    assert "red" not in told.headers["x-warnings"]
    if dialect == "own":
        assert "too long" in told.json()["warnings"][0] and told.json()["images"][0]["tokens_cut"] >= 90
    elif dialect == "a1111":
        assert any("too long" in ignored for ignored in json.loads(told.json()["info"])["ignored"])


def test_only_a1111_reads_weights_unless_asked(client, service):
    for dialect in DIALECTS:
        ask(client, dialect, prompt="a box (red)")
    ask(client, "own", prompt="a box (red)", prompt_weights="true")
    weights = [order.request.sampling.prompt_weights for order in service.orders]
    assert weights == [dialect == "a1111" for dialect in DIALECTS] + [True]
