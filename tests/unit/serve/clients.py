"""The three dialects' requests for the same picture, written by hand, and how each tells a problem."""

import base64
from dataclasses import dataclass
from typing import Any

from starlette.testclient import TestClient

from tests.unit.serve.fake import alpha_png, mask_png, photo_png

DIALECTS = ("openai", "a1111", "own", "own_json")
_A1111 = {
    "seed": "seed",
    "steps": "steps",
    "guidance_scale": "cfg_scale",
    "strength": "denoising_strength",
    "feather": "mask_blur",
    "padding": "inpaint_full_res_padding",
    "sampler": "sampler_name",
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "n": "batch_size",
    "timeout_s": "timeout_s",
    "prompt_chunks": "prompt_chunks",
}
"""Our names of settings -> A1111's."""


@dataclass(frozen=True)
class Told:
    """A problem as the dialect's client reads it."""

    status: int
    code: str
    message: str


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def ask(client: TestClient, dialect: str, image: bytes | None = None, mask: bytes | None = None, **settings: Any):
    """Post a request for a picture; default: photo and hole of `fake`, prompt `table`, category CDP_FOOD."""
    image = photo_png() if image is None else image
    if mask is None:
        mask = alpha_png() if dialect == "openai" else mask_png()
    category = settings.pop("category", "CDP_FOOD")
    settings = {"prompt": "table", **settings}
    if dialect == "openai":
        files = {"image": ("upload", image), "mask": ("upload", mask)}
        return client.post("/v1/images/edits", files=files, data={"model": category, **settings})
    if dialect == "own":
        files = {"image": ("a", image), "mask": ("b", mask)}
        return client.post("/paint", files=files, data={"category": category, **settings})
    if dialect == "own_json":
        return client.post("/paint", json={"image": b64(image), "mask": b64(mask), "category": category, **settings})
    named = {_A1111[name]: value for name, value in settings.items()}
    prompt = f"{named.pop('prompt')} <lora:{category}:1>"
    return client.post(
        "/sdapi/v1/img2img", json={"init_images": [b64(image)], "mask": b64(mask), "prompt": prompt, **named}
    )


def pictures(dialect: str, response: Any) -> list[bytes]:
    """The files in an answer."""
    assert response.status_code == 200, response.text
    if dialect == "openai":
        return [base64.b64decode(one["b64_json"]) for one in response.json()["data"]]
    if dialect == "a1111":
        return [base64.b64decode(one) for one in response.json()["images"]]
    if response.headers["content-type"].startswith("image/"):
        return [response.content]
    return [base64.b64decode(one["b64"]) for one in response.json()["images"]]


def told(dialect: str, response: Any) -> Told:
    """The problem in an answer, read strictly in the dialect's own form."""
    value = response.json()
    if dialect == "openai":
        assert value.keys() == {"error"} and value["error"].keys() == {"message", "type", "param", "code"}
        return Told(response.status_code, value["error"]["code"], value["error"]["message"])
    if dialect == "a1111":
        assert value.keys() == {"error", "detail", "body", "errors"}
        return Told(response.status_code, value["error"], value["detail"])
    assert response.headers["content-type"] == "application/problem+json"
    assert value["status"] == response.status_code and value["request_id"] == response.headers["x-request-id"]
    return Told(response.status_code, value["code"], value["detail"])
