"""2,000 broken requests, the same ones every time: no 5xx, and the service sees valid orders only.

Each is a valid request of one dialect to which a few random things were done. The application is called as a server
calls it, so that headers and chunks can be wrong, too.
"""

import asyncio
import json
import random
from collections import Counter

import httpx2
import numpy as np
import pytest
from PIL import Image

from inpaint.serve.dialects.paint_http import paint_http
from inpaint.serve.http.limits import HttpSettings
from tests.unit.data.images import encoded, picture, with_orientation
from tests.unit.serve.clients import b64
from tests.unit.serve.fake import FakeService, alpha_png, mask_png, photo_png

REQUESTS = 2_000
BLOCK = 500
AMONG_THEM = 20  # requests of a block that must get through and be painted
STRANGE = [
    "", "0", "-1", "1e309", "NaN", "inf", "null", "true", "[]", "{}", "\0", "\ufffd", "x" * 5_000, "9" * 400, "0x10",
    "1.5", " 7 ", "\u0663", "CDP_FOOD", "toy", "<lora:CDP_FOOD:1>", "<lora:x:y:z>", "http://127.0.0.1/", "data:,",
    "../..", "%s%n", "{0.__class__}", "1x1", "64x64", "auto", "euler_a", "DPM++ 2M", "stream", "url", "jpeg", "webp",
    "CDP_FOOD:1e400",
]  # fmt: skip
STRANGE_JSON = [
    None, True, False, 0, -1, 10**400, 1.5, -0.0, 1e308, [], {}, [[]], [None], {"name": "CDP_FOOD"}, ["x"] * 3,
    [{"name": "CDP_FOOD", "weight": 1e9}], [{"name": 3}], "\ud800", *STRANGE,
]  # fmt: skip
NAMES = [
    "image", "image[]", "mask", "prompt", "model", "n", "size", "seed", "steps", "guidance_scale", "cfg_scale",
    "strength", "denoising_strength", "sampler", "sampler_name", "sampler_index", "negative_prompt", "padding",
    "feather", "mask_blur", "timeout_s", "output_format", "output_compression", "quality", "stream", "partial_images",
    "previews", "answer", "category", "adapters", "response_format", "init_images", "inpaint_full_res",
    "inpaint_full_res_padding", "width", "height", "inpainting_fill", "inpainting_mask_invert", "resize_mode",
    "batch_size", "n_iter", "override_settings", "styles", "send_images", "script_name", "alwayson_scripts", "", "x",
    "\u732b",
]  # fmt: skip
TYPES = [
    "", "text/plain", "application/json", "application/json; charset=utf-16", "multipart/form-data",
    "multipart/form-data; boundary=", "multipart/form-data; boundary=b", "multipart/mixed; boundary=b", "\xff", ";;;",
    "multipart/form-data; boundary=" + "b" * 300,
]  # fmt: skip
HEADERS = [
    ("content-length", "-1"), ("content-length", "99999999999999"), ("content-length", "\xb2"), ("expect", "\xff"),
    ("content-encoding", "gzip"), ("x-request-id", "\xff" * 500), ("x-request-id", "ok"), ("accept", "*/*;q=x"),
    ("authorization", "Basic \xff"), ("transfer-encoding", "chunked"),
]  # fmt: skip

PHOTOS = [
    encoded(picture(), "JPEG"),
    encoded(picture(), "JPEG", progressive=True, icc_profile=b"x" * 200),
    encoded(picture(), "WEBP"),
    encoded(picture(), "WEBP", lossless=True),
    encoded(picture().convert("CMYK"), "JPEG"),
    encoded(picture().convert("P"), transparency=3),
    encoded(picture().convert("1")),
    encoded(picture().convert("LA")),
    encoded(Image.fromarray(np.full((30, 40), 40_000, dtype=np.uint16))),
    with_orientation(picture(), 6, "JPEG"),
    with_orientation(picture(), 8),
]


def one_of(rng: random.Random, data: bytes) -> bytes:
    """`data`, damaged in one way."""
    place = rng.randrange(len(data) + 1) if data else 0
    length = rng.randrange(1, 60)
    match rng.randrange(5):
        case 0:
            return data[:place]
        case 1:
            flipped = bytearray(data)
            for _ in range(rng.randrange(1, 8)):
                if flipped:
                    flipped[rng.randrange(len(flipped))] = rng.randrange(256)
            return bytes(flipped)
        case 2:
            return data[:place] + data[place + length :]
        case 3:
            return data[:place] + data[place : place + length] * 2 + data[place + length :]
        case _:
            return data[:place] + rng.randbytes(length) + data[place:]


def a_file(rng: random.Random, data: bytes) -> bytes:
    return one_of(rng, data) if rng.random() < 0.3 else data


def a_photo(rng: random.Random) -> bytes:
    return photo_png() if rng.random() < 0.5 else rng.choice(PHOTOS)


def a_form(rng: random.Random, path: str) -> tuple[bytes, str]:
    mask = alpha_png() if path.startswith("/v1") else mask_png()
    fields: list[tuple[str, tuple]] = [
        ("image", ("a", a_file(rng, a_photo(rng)))),
        ("mask", ("b", a_file(rng, mask))),
        ("prompt", (None, b"table")),
    ]
    for _ in range(rng.randrange(4)):
        fields.append((rng.choice(NAMES), (None, rng.choice(STRANGE).encode())))
    if rng.random() < 0.2:
        names = [name for name, _ in fields]
        rng.shuffle(names)
        fields = [(name, value) for name, (_, value) in zip(names, fields, strict=True)]
    if rng.random() < 0.1:
        fields.pop(rng.randrange(len(fields)))
    request = httpx2.Request("POST", "http://x", files=fields, headers={"content-type": BOUNDARY})
    return request.read(), BOUNDARY


BOUNDARY = "multipart/form-data; boundary=0123456789"


def a_json(rng: random.Random, path: str) -> tuple[bytes, str]:
    image, mask = b64(a_file(rng, a_photo(rng))), b64(a_file(rng, mask_png()))
    value = {"init_images": [image]} if path.startswith("/sdapi") else {"image": image}
    value |= {"mask": mask, "prompt": "table"}
    for _ in range(rng.randrange(4)):
        value[rng.choice(NAMES)] = rng.choice(STRANGE_JSON)
    if rng.random() < 0.1:
        value.pop(rng.choice(list(value)))
    return json.dumps(value).encode(), "application/json"


def a_request(rng: random.Random) -> tuple[str, bytes, list[tuple[str, str]]]:
    path, make = rng.choice(
        [("/v1/images/edits", a_form), ("/sdapi/v1/img2img", a_json), ("/paint", a_form), ("/paint", a_json)]
    )
    body, kind = make(rng, path)
    if rng.random() < 0.35:
        body = one_of(rng, body)
    if rng.random() < 0.02:
        body = rng.randbytes(rng.randrange(2_000))
    headers = [("content-type", rng.choice(TYPES) if rng.random() < 0.1 else kind)]
    if rng.random() < 0.15:
        headers.append(rng.choice(HEADERS))
    return path, body, headers


async def send_it(app, path: str, body: bytes, headers: list[tuple[str, str]], rng: random.Random) -> tuple[int, bytes]:
    chunks = [body[i : i + 300] for i in range(0, len(body), 300)] if rng.random() < 0.2 else [body]
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    if rng.random() < 0.03:
        messages = [*messages[: rng.randrange(len(messages))], {"type": "http.disconnect"}]
    messages.reverse()
    sent = []

    async def receive():
        return messages.pop() if messages else await asyncio.Future()

    async def send(message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    status = sent[0]["status"] if sent else 499
    return status, b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize("block", range(REQUESTS // BLOCK))
def test_fuzzed_requests_are_never_our_fault_and_never_reach_the_service_invalid(block):
    service = FakeService()
    app = paint_http(service, HttpSettings())
    counts: Counter[int] = Counter()

    async def run() -> None:
        for number in range(block * BLOCK, (block + 1) * BLOCK):
            rng = random.Random(number)
            path, body, headers = a_request(rng)
            status, answer = await send_it(app, path, body, headers, rng)
            counts[status] += 1
            assert status < 500, f"request {number}: {status} {answer[:300]!r} for {path} {headers} {body[:300]!r}"
            if 400 <= status < 499:
                told = json.loads(answer)
                assert "error" in told or "detail" in told, number

    asyncio.run(run())
    # The fuzzing must get past the first check, or it shows nothing.
    assert counts[200] > AMONG_THEM and counts[400] > BLOCK / 5 and counts[415] > 0, counts
