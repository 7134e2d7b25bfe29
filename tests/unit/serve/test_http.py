"""Around the dialects: our own one, streaming, clients that leave, load, our own faults, limits, logs and metrics."""

import asyncio
import inspect
import io
import json
import logging
import socket
from dataclasses import asdict
from threading import current_thread
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from starlette.testclient import TestClient

from inpaint.data import decode
from inpaint.errors import InpaintError
from inpaint.paint.request import SamplingSettings
from inpaint.serve.dialects.paint_http import paint_http
from inpaint.serve.http.endpoint import Endpoint, Picture
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.http.receipt import read_receipt
from inpaint.serve.http.resources import Record
from inpaint.serve.service import AdapterGone, DeadlinePassed, Overloaded, Unpaintable
from tests.unit.serve.clients import DIALECTS, ask, b64, pictures, told
from tests.unit.serve.fake import BASE, CATALOGUE, KEY, FakeService, alpha_png, expected, mask_png, photo_png, served


@pytest.fixture
def service():
    return FakeService()


@pytest.fixture
def client(service):
    with TestClient(paint_http(service, HttpSettings())) as client:
        yield client


PATHS = ("/paint", "/v1/images/edits", "/sdapi/v1/img2img")


def array(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_a_form_is_answered_with_the_picture_and_what_it_was_painted_with(client, service):
    response = ask(client, "own", seed=3, prompt="table")
    assert response.headers["content-type"] == "image/png"
    assert np.array_equal(array(response.content), expected())
    assert response.headers["x-seed"] == "3"
    assert response.headers["x-kept-pixels-changed"] == "0"
    assert response.headers["x-base-revision"] == BASE.revision
    assert response.headers["x-adapter-digest"] == CATALOGUE["CDP_FOOD"].digest
    receipt = read_receipt(response.content)
    assert (receipt.seed, receipt.base) == (3, "toy")
    assert receipt.sampling == asdict(service.orders[0].request.sampling)
    assert receipt.adapters == service.orders[0].adapters
    assert SamplingSettings(**receipt.sampling) == service.orders[0].request.sampling
    assert service.orders[0].request.prompt == "CDP_FOOD background, table"


def test_everything_reaches_the_order(client, service):
    body = {
        "image": b64(photo_png()),
        "mask": b64(mask_png()),
        "prompt": "CDP_FOOD background, table",
        "negative_prompt": "text",
        "adapters": [{"name": "CDP_FOOD", "weight": 0.5}, {"name": "CDP_SOFA"}],
        "category": "CDP_SOFA",
        "seed": 2**63 - 2,
        "n": 2,
        "steps": 3,
        "guidance_scale": 2.5,
        "prompt_weights": True,
        "prompt_chunks": 2,
        "sampler": "heun",
        "schedule": "karras",
        "strength": 0.5,
        "size": 96,
        "padding": 5,
        "feather": 2,
        "timeout_s": 12.5,
        "output_format": "webp",
        "quality": 80,
    }
    response = client.post("/paint", json=body)
    assert [one["seed"] for one in response.json()["images"]] == [2**63 - 2, 2**63 - 1]
    order = service.orders[0]
    assert [(use.name, use.weight) for use in order.adapters] == [("CDP_FOOD", 0.5), ("home", 1.0)]
    assert order.request.prompt == "CDP_SOFA background, CDP_FOOD background, table"
    assert order.timeout_s == 12.5
    for name in (
        "negative_prompt",
        "steps",
        "guidance_scale",
        "sampler",
        "schedule",
        "strength",
        "size",
        "padding",
        "feather",
    ):
        assert {**vars(order.request), **vars(order.request.sampling)}[name] == body[name]


def test_a_tag_in_the_prompt_calls_an_adapter_beside_those_that_are_named(client, service):
    ask(client, "own", prompt="a table <lora:CDP_FOOD:0.5>", category="CDP_COS")
    order = service.orders[0]
    assert [(use.name, use.weight) for use in order.adapters] == [("CDP_COS", 1.0), ("CDP_FOOD", 0.5)]
    assert order.request.prompt == "CDP_COS background, CDP_FOOD background, a table"
    refused = ask(client, "own", prompt="a table <lora:CDP_FOOT:0.5>")
    assert refused.status_code == 404 and "nearest: CDP_FOOD" in refused.json()["detail"]


def test_adapters_in_a_form_are_written_as_text(client, service):
    assert ask(client, "own", category="", adapters="CDP_FOOD:0.5, CDP_COS").status_code == 200
    assert [(use.name, use.weight) for use in service.orders[0].adapters] == [("CDP_FOOD", 0.5), ("CDP_COS", 1.0)]


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"adapters": "CDP_FOOD:9"}, "-4 to 4"),
        ({"adapters": "CDP_FOOD:x"}, "no number"),
        ({"adapters": "CDP_FOOD,CDP_FOOD", "category": ""}, "twice"),
        ({"adapters": "CDP_COS"}, "known to 0"),
        ({"answer": "image", "n": 2}, "ask for json"),
        ({"previews": 9}, "0 to 8"),
        ({"size": 7}, "8 to 128"),
        ({"size": 129}, "8 to 128"),
        ({"catgory": "CDP_FOOD"}, "did you mean category"),
        ({"output_format": "gif"}, "'png', 'jpeg'"),
        ({"stream": "maybe"}, "true or false"),
    ],
)
def test_what_our_own_dialect_refuses(client, service, settings, says):
    assert says in told("own", ask(client, "own", **settings)).message
    assert not service.orders


def events_of(text: str) -> list[tuple[str, dict]]:
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in blocks]


def test_a_stream_has_previews_then_each_picture(client, service):
    response = ask(client, "own", stream="true", previews=2, n=2)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    assert [kind for kind, _ in events] == ["preview"] * 4 + ["painted"] * 2
    assert {value["number"] for kind, value in events if kind == "painted"} == {0, 1}
    service.fails_later = DeadlinePassed("too long")
    assert events_of(ask(client, "own", stream="true", previews=1).text)[-1][1]["code"] == "deadline_passed"


@pytest.mark.parametrize("stream", ["false", "true"])
@pytest.mark.parametrize("dialect", ["openai", "own"])
def test_when_the_client_goes_its_painting_is_closed_at_once(service, dialect, stream, caplog):
    service.waits = True
    settings = {"partial_images" if dialect == "openai" else "previews": 1} if stream == "true" else {}
    with served(service) as url, httpx2.Client() as writer:
        path = "/v1/images/edits" if dialect == "openai" else "/paint"
        mask = alpha_png() if dialect == "openai" else mask_png()
        data = {"prompt": "x", "stream": stream, **settings}
        request = writer.build_request("POST", url + path, files={"image": photo_png(), "mask": mask}, data=data)
        body = request.read()
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items()), "", ""]
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall("\r\n".join(lines).encode() + body)
            assert service.begun.wait(30)
            assert not service.closed.is_set()
        assert service.closed.wait(30)


@pytest.mark.parametrize("settings", [{}, {"stream": "true", "previews": "1"}])
def test_when_the_server_cancels_a_request_its_painting_is_closed(service, settings):
    """As Ray Serve does when the client has gone."""
    service.waits = True
    app = paint_http(service, HttpSettings())
    with httpx2.Client() as writer:
        files = {"image": photo_png(), "mask": mask_png()}
        request = writer.build_request("POST", "http://x/paint", files=files, data=settings)
        body = request.read()

    async def run() -> None:
        messages = [{"type": "http.request", "body": body}]

        async def receive():
            return messages.pop() if messages else await asyncio.Future()

        async def send(message) -> None:
            pass

        task = asyncio.create_task(app(scope_of(request.headers), receive, send))
        await asyncio.to_thread(service.begun.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert service.closed.is_set()

    asyncio.run(run())


def scope_of(headers) -> dict:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/paint", "raw_path": b"/paint", "query_string": b"", "root_path": "", "headers": raw,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip


def test_a_client_that_leaves_in_the_middle_of_its_body_costs_nothing(service):
    app = paint_http(service, HttpSettings())
    sent = []

    async def run() -> None:
        messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"--b\r\n", "more_body": True}]

        async def receive():
            return messages.pop()

        async def send(message) -> None:
            sent.append(message)

        await app(scope_of({"content-type": "multipart/form-data; boundary=b"}), receive, send)

    asyncio.run(run())
    assert not sent and not service.orders


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "error, status, header",
    [
        (Overloaded("full", 0.01), 429, ("retry-after", "1")),
        (Overloaded("full", 12.01), 429, ("retry-after", "13")),
        (DeadlinePassed("too long"), 408, ("x-should-retry", "false")),
        (Unpaintable("fails alone"), 422, ("x-should-retry", "false")),
        (AdapterGone("replaced"), 409, ("retry-after", "1")),
        (InpaintError("size 3: too small"), 400, None),
    ],
)
def test_what_the_service_says_is_told_in_the_dialects_form(client, service, dialect, error, status, header):
    service.fails = error
    response = ask(client, dialect)
    assert told(dialect, response).status == status
    assert str(error) in told(dialect, response).message
    if header:
        assert response.headers[header[0]] == header[1]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_our_own_fault_is_a_500_that_says_nothing_but_the_request(client, service, dialect, caplog):
    service.fails = RuntimeError("secret /etc/internals")
    response = ask(client, dialect)
    problem = told(dialect, response)
    assert problem.status == 500 and response.headers["x-request-id"] in problem.message
    assert "secret" not in response.text and "Traceback" not in response.text
    assert "secret /etc/internals" in caplog.text and response.headers["x-request-id"] in caplog.text


def test_a_picture_with_changed_kept_pixels_never_goes_out(client, service):
    service.changed = 1
    assert ask(client, "own").status_code == 500


@pytest.mark.parametrize("path", ["/v1/images/edits", "/sdapi/v1/img2img", "/paint"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_above_the_limit_is_refused_while_it_is_read(service, path, chunked):
    produced = []

    def chunks():
        for _ in range(1_000):
            produced.append(1)
            yield b"x" * 65_536

    settings = HttpSettings(max_body_bytes=1_000_000)
    with TestClient(paint_http(service, settings)) as client:
        content = chunks() if chunked else b"x" * 1_000_001
        response = client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 413 and "1,000,000" in response.text
    assert not service.orders


def test_a_lying_content_length_does_not_help(service):
    app = paint_http(service, HttpSettings(max_body_bytes=100_000))
    sent = []

    async def run() -> None:
        async def receive():
            return {"type": "http.request", "body": b"x" * 65_536, "more_body": True}

        async def send(message) -> None:
            sent.append(message)

        await app(scope_of({"content-type": "application/json", "content-length": "10"}), receive, send)

    asyncio.run(run())
    assert sent[0]["status"] == 413


def test_a_body_that_never_ends_is_given_up(service):
    app = paint_http(service, HttpSettings(body_timeout_s=0.05))
    sent = []

    async def run() -> None:
        async def receive():
            return await asyncio.Future()

        async def send(message) -> None:
            sent.append(message)

        await app(scope_of({"content-type": "application/json"}), receive, send)

    asyncio.run(run())
    assert sent[0]["status"] == 408


def test_more_requests_than_may_be_in_flight_are_told_to_come_back_but_no_other_key_is(service, tmp_path):
    service.waits = True
    (tmp_path / "keys").write_text(f"shop:{KEY}\nother:{KEY[::-1]}\n")
    with served(service, HttpSettings(max_in_flight=1, keys_file=str(tmp_path / "keys"))) as url:
        files = {"image": photo_png(), "mask": mask_png()}
        shop, other = {"x-api-key": KEY}, {"x-api-key": KEY[::-1]}
        with httpx2.Client(headers=shop) as first, httpx2.Client(headers=shop) as second:
            request = first.build_request("POST", f"{url}/paint", files=files, data={"stream": "true", "previews": "1"})
            response = first.send(request, stream=True)
            refused = second.post(f"{url}/paint", files=files)
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
            assert second.get(f"{url}/health").status_code == 200
            assert second.get(f"{url}/catalogue", headers=other).status_code == 200
            response.close()
        assert service.closed.wait(30)


def test_memory_held_by_requests_is_bounded_and_given_back(service):
    settings = HttpSettings(max_body_bytes=50_000, max_answer_pixels=2_400, max_held_bytes=80_000)
    with TestClient(paint_http(service, settings)) as client:
        for _ in range(20):
            assert ask(client, "own").status_code == 200
    # 0.4 megabytes: one photo's request fits, a second one beside it does not.
    large = HttpSettings(max_body_bytes=100_000, max_answer_pixels=30_000, max_held_bytes=470_000)
    service.waits = True
    with served(service, large) as url, httpx2.Client() as first, httpx2.Client() as second:
        files = {"image": photo_png(200, 150), "mask": mask_png(200, 150)}
        request = first.build_request("POST", f"{url}/paint", files=files, data={"stream": "true", "previews": "1"})
        response = first.send(request, stream=True)
        refused = second.post(f"{url}/paint", files=files)
        assert refused.status_code == 429 and "in memory" in refused.text
        response.close()
        assert service.closed.wait(30)
    with pytest.raises(ValidationError, match="max_held_bytes"):
        HttpSettings(max_held_bytes=1_000_000)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_event_loop_neither_decodes_nor_encodes(client, dialect, monkeypatch):
    threads = []

    def watched(name, original):
        def noting(*arguments, **more):
            threads.append((name, current_thread().name))
            return original(*arguments, **more)

        return noting

    monkeypatch.setattr(decode, "open_image", watched("open", decode.open_image))
    monkeypatch.setattr(Image.Image, "save", watched("save", Image.Image.save))
    monkeypatch.setattr(Picture, "base64", property(watched("base64", Picture.base64.fget)))
    image, mask = photo_png(), alpha_png() if dialect == "openai" else mask_png()
    threads.clear()
    assert ask(client, dialect, image=image, mask=mask).status_code == 200
    assert [name for name, _ in threads][:3] == ["open", "open", "save"]
    assert all(thread.startswith("pictures") for _, thread in threads)


class Counting:
    def __init__(self) -> None:
        self.in_flight = 0
        self.records: list[Record] = []

    def began(self, dialect: str) -> None:
        self.in_flight += 1

    def ended(self, record: Record) -> None:
        self.in_flight -= 1
        self.records.append(record)


def test_every_request_is_counted_and_has_one_line_of_json(service, caplog):
    caplog.set_level(logging.INFO, "inpaint.serve.requests")
    counting = Counting()
    with TestClient(paint_http(service, HttpSettings(), counting)) as client:
        ask(client, "own", n=2, steps=3)
        ask(client, "openai", category="nothing like it")
        client.get("/nowhere", headers={"x-request-id": "bad id\nwith a line"})
    assert counting.in_flight == 0
    assert [(r.dialect, r.status, r.problem) for r in counting.records] == [
        ("own", 200, ""), ("openai", 404, "model_not_found"), ("own", 404, "no_such_path"),
    ]  # fmt: skip
    lines = [json.loads(r.message) for r in caplog.records if r.name == "inpaint.serve.requests"]
    assert len(lines) == 3
    first = lines[0]
    assert (first["model"], first["n"], first["steps"], first["pixels"]) == ("CDP_FOOD", 2, 6, 1_200)
    assert (first["queue_s"], first["paint_s"], first["key"]) == (0.25, 0.5, "-")
    assert first["bytes_in"] > 0 and first["bytes_out"] > 0 and first["seconds"] > 0
    assert lines[2]["id"].isalnum()


@pytest.mark.parametrize(("error", "problem"), [(DeadlinePassed("late"), "deadline_passed"), (KeyError(), "internal")])
def test_what_ends_a_stream_early_is_counted_and_logged_too(service, error, problem):
    service.fails_later = error
    counting = Counting()
    app = paint_http(service, HttpSettings(), counting)
    with TestClient(app, raise_server_exceptions=False) as client:
        ask(client, "own", stream="true", previews=1)
    assert [(record.status, record.problem) for record in counting.records] == [(200, problem)]


def test_health_readiness_and_the_catalogue(client, service):
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 200
    service.is_healthy = False
    assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
    catalogue = client.get("/catalogue").json()
    assert catalogue["adapters"]["home"]["categories"] == ["CDP_LAMP", "CDP_SOFA"]
    assert catalogue["refused"] == {"BROKEN": "rank 0"}


def test_every_field_of_our_own_dialect_is_documented(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/paint", "/v1/images/edits", "/sdapi/v1/img2img", "/catalogue", "/health", "/ready"} <= paths.keys()
    internals = inspect.cleandoc(Endpoint.handle.__doc__)
    assert not [path for path in PATHS if paths[path]["post"]["description"] in ("", internals)]
    content = paths["/paint"]["post"]["requestBody"]["content"]
    fields = content["multipart/form-data"]["schema"]["properties"]
    assert fields.keys() == content["application/json"]["schema"]["properties"].keys()
    values = {"answer": "json", "adapters": "CDP_FOOD", "timeout_s": "9", "schedule": "uniform"}
    for name, schema in fields.items():
        assert schema["description"], name
        value = values.get(name, str(schema.get("default", schema.get("minimum"))))
        if name not in ("image", "mask", "panels"):  # panels are in place of a mask
            assert ask(client, "own", **{name: value}).status_code == 200, (name, value)


@pytest.mark.parametrize("given, meant", [({}, None), ({"padding": 0}, 0), ({"padding": "whole"}, "whole")])
@pytest.mark.parametrize("dialect", ["openai", "own", "own_json"])
def test_how_much_of_the_photo_is_seen_reaches_the_painter_and_the_receipt(client, service, dialect, given, meant):
    (file,) = pictures(dialect, ask(client, dialect, **given))
    assert service.orders[0].request.sampling.padding == meant
    assert SamplingSettings(**read_receipt(file).sampling) == service.orders[0].request.sampling


def test_the_documentations_limits_are_those_that_hold(service):
    limits = HttpSettings(max_steps=7, max_weight=2.0, max_prompt_chars=9)
    with TestClient(paint_http(service, limits)) as client:
        paths = client.get("/openapi.json").json()["paths"]
        bodies = {path: next(iter(paths[path]["post"]["requestBody"]["content"].values()))["schema"] for path in PATHS}
        for body in bodies.values():
            assert body["properties"]["steps"]["maximum"] == 7 and body["properties"]["prompt"]["maxLength"] == 9
            assert all("$ref" not in json.dumps(field) for field in body["properties"].values())
        own = bodies["/paint"]["properties"]
        assert (own["size"]["minimum"], own["size"]["maximum"]) == (BASE.size_multiple, 2 * BASE.default_size)
        assert own["adapters"]["anyOf"][1]["items"]["properties"]["weight"]["minimum"] == -2
        assert "give 1 to 7" in told("own", ask(client, "own", steps=8)).message
        assert f"give 0 to {2**63 - 1}" in told("own", ask(client, "own", seed=2**63)).message
        assert f"give 0 to {2**63 - 2}" in told("own", ask(client, "own", seed=2**63 - 1, n=2)).message
        assert "give -2 to 2" in told("own", ask(client, "own", adapters="CDP_FOOD:3")).message


@pytest.mark.parametrize("adapters", [[{"name": "CDP_FOOD", "weight": "x"}], [{"weight": 1}], [3], 3, {"a": 1}])
def test_what_is_wrong_deep_in_a_field_is_told_as_that_fields(client, service, adapters):
    response = ask(client, "own_json", adapters=adapters)
    assert response.json()["field"] == "adapters" and response.json()["detail"].startswith("adapters")
    assert not service.orders


@pytest.mark.parametrize("method, path", [("GET", "/paint"), ("GET", "/v1/images/edits"), ("PUT", "/sdapi/v1/img2img")])
def test_wrong_methods_and_paths_are_told_in_the_dialects_form(client, method, path):
    response = client.request(method, path)
    assert response.status_code == 405 and "allow" in response.headers
    dialect = "openai" if "v1/i" in path and "sdapi" not in path else "a1111" if "sdapi" in path else "own"
    assert told(dialect, response).code == "no_such_method"
