"""What `benchmarks.soak` sends: scenes that real clients ask for, bodies that are wrong, and clients that leave."""

import base64
import io
import json
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import httpx2
import numpy as np
import openai
import webuiapi
from PIL import Image

from inpaint.serve.http.receipt import Receipt, read_receipt
from inpaint.toy.catalogue import render
from inpaint.toy.measure import HELD_OUT_SEED

PATIENCE_S = 120.0
STEPS = 2
MAX_BODY = 8 * 2**20
"""Of the service. Serve's proxy reads a body whole before anyone can refuse it, and keeps the memory."""
_LONG = ", ".join(f"a {colour} mug on {place}" for colour in ("red", "blue", "green") for place in range(40))


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """One picture to paint, and the client that asks for it."""

    name: str
    photo: np.ndarray
    hole: np.ndarray
    prompt: str
    seed: int
    ask: "Callable[[Clients, Scene, str], list[Answer]]"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def photo_png(self) -> bytes:
        return png(self.photo)

    @property
    def mask_png(self) -> bytes:
        return png(self.hole)

    @property
    def alpha_png(self) -> bytes:
        """As OpenAI wants it: transparent where to paint."""
        return png(np.dstack([self.photo, np.where(self.hole, 0, 255).astype(np.uint8)]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """A picture that came, or what came instead."""

    status: int = 200
    problem: str = ""
    number: int = 0
    file: bytes = b""
    exact: bool = True
    """Whether its format keeps pixels."""

    @property
    def picture(self) -> np.ndarray | None:
        return np.asarray(Image.open(io.BytesIO(self.file)).convert("RGB")) if self.file else None

    @property
    def receipt(self) -> Receipt:
        assert self.file, f"{self.status} {self.problem}"
        return read_receipt(self.file)


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A body that no client should send, or one that may not be painted."""

    name: str
    path: str = "/paint"
    body: bytes = b""
    content_type: str = "application/json"
    method: str = "POST"
    expected: tuple[int, ...] = (400,)


class Clients:
    """One customer's: each client keeps its connections."""

    def __init__(self, port: int) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        # No retries: an answer 5xx is to be seen.
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)
        self.a1111 = webuiapi.WebUIApi(baseurl=f"{self.url}/sdapi/v1")
        self.http = httpx2.Client(base_url=self.url, timeout=PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.openai.close()
        self.a1111.session.close()
        self.http.close()

    def ask(self, scene: Scene, category: str) -> list[Answer]:
        """The scene's pictures, or one answer without."""
        try:
            return scene.ask(self, scene, category)
        except openai.APIStatusError as error:
            return [Answer(status=error.status_code, problem=str(error)[:300])]
        except (openai.APIConnectionError, httpx2.HTTPError, OSError) as error:
            return [Answer(status=599, problem=f"no answer: {error!r}"[:300])]
        except RuntimeError as error:  # webuiapi's
            status, text = error.args if len(error.args) == 2 else (598, str(error))
            return [Answer(status=status, problem=str(text)[:300])]

    def send_bad(self, bad: Bad) -> int:
        """The answer's status; 599 where there was none."""
        headers = {"content-type": bad.content_type}
        try:
            return int(self.http.request(bad.method, bad.path, content=bad.body, headers=headers).status_code)
        except httpx2.HTTPError:
            return 599

    def leave(self, scene: Scene, category: str, *, after_s: float, rng: random.Random) -> None:
        """Ask, and close the connection before the answer, sometimes before the body's end."""
        body = json.dumps(_json(scene, category, steps=25)).encode()
        head = (
            f"POST /paint HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        )
        sent = body[: rng.randrange(len(body))] if rng.random() < 0.3 else body
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(f"{head}\r\n".encode() + sent)
            connection.settimeout(after_s)
            with suppress(TimeoutError):
                connection.recv(1)


def by_openai(clients: Clients, scene: Scene, category: str) -> list[Answer]:
    """The mask in a file of its own, two pictures."""
    asked: dict[str, Any] = {"model": category, "prompt": scene.prompt, "n": 2, "extra_body": _extra(scene)}
    answer = clients.openai.images.edit(image=scene.photo_png, mask=scene.alpha_png, **asked)
    return [Answer(number=i, file=base64.b64decode(one.b64_json or "")) for i, one in enumerate(answer.data or [])]


def by_openai_stream(clients: Clients, scene: Scene, category: str) -> list[Answer]:
    """Transparent pixels of the photo itself, and pictures on the way."""
    asked: dict[str, Any] = {"model": category, "prompt": scene.prompt, "extra_body": _extra(scene)}
    events = clients.openai.images.edit(image=scene.alpha_png, stream=True, partial_images=2, **asked)
    done = [event for event in events if event.type == "image_edit.completed"]
    return [Answer(file=base64.b64decode(event.b64_json)) for event in done] or [Answer(problem="no last event")]


def by_webuiapi(clients: Clients, scene: Scene, category: str) -> list[Answer]:
    """As A1111's clients write it: all defaults sent along, the adapter a tag in the prompt."""
    settings: dict[str, Any] = {"denoising_strength": 1.0, "steps": STEPS, "cfg_scale": 1.0, **scene.settings}
    settings |= {"alwayson_scripts": {}, "override_settings": {}, "styles": []}  # its defaults are ones that it changes
    result = clients.a1111.img2img(
        images=[Image.fromarray(scene.photo)],
        mask_image=Image.fromarray(scene.hole),
        prompt=f"{scene.prompt} <lora:{category}:1>",
        seed=scene.seed,
        **settings,
    )
    return [Answer(number=i, file=base64.b64decode(one)) for i, one in enumerate(result.json["images"])]


def by_form(clients: Clients, scene: Scene, category: str) -> list[Answer]:
    """A form, answered with the picture."""
    fields = {"category": category, "prompt": scene.prompt, **_extra(scene)}
    files = {"image": ("photo.png", scene.photo_png), "mask": ("mask.png", scene.mask_png)}
    answer = clients.http.post("/paint", data=fields, files=files)
    if answer.status_code != 200:
        return [Answer(status=answer.status_code, problem=answer.text[:300])]
    return [Answer(file=answer.content, exact=answer.headers["content-type"] == "image/png")]


def by_json(clients: Clients, scene: Scene, category: str) -> list[Answer]:
    """JSON, two pictures."""
    answer = clients.http.post("/paint", json=_json(scene, category, n=2, answer="json"))
    if answer.status_code != 200:
        return [Answer(status=answer.status_code, problem=answer.text[:300])]
    return [Answer(number=one["number"], file=base64.b64decode(one["b64"])) for one in answer.json()["images"]]


def by_stream(clients: Clients, scene: Scene, category: str) -> list[Answer]:
    """Server-sent events of our own."""
    asked = _json(scene, category, stream=True, previews=2)
    with clients.http.stream("POST", "/paint", json=asked) as answer:
        if answer.status_code != 200:
            return [Answer(status=answer.status_code, problem=answer.read().decode()[:300])]
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    return [Answer(file=base64.b64decode(json.loads(lines[-1])["b64"]))]


def png(pixels: np.ndarray) -> bytes:
    """H x W (x 3 or 4), uint8 or bool -> a file."""
    file = io.BytesIO()
    picture = pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _extra(scene: Scene) -> dict[str, Any]:
    return {"seed": scene.seed, "steps": STEPS, **scene.settings}


def _json(scene: Scene, category: str, **more: Any) -> dict[str, Any]:
    files = {"image": scene.photo_png, "mask": scene.mask_png}
    encoded = {name: base64.b64encode(data).decode() for name, data in files.items()}
    return {**encoded, "category": category, "prompt": scene.prompt, **_extra(scene), **more}


def _scene(number: int, name: str, ask: Any, size: tuple[int, int], *, prompt: str = "a red mug", **how: Any) -> Scene:
    """A toy product in a photo of any size (height, width); its surroundings are painted, or with `patch` (top, left,
    side) a square."""
    scene = render(HELD_OUT_SEED, number)
    patch = how.pop("patch", None)
    image = np.asarray(Image.fromarray(scene.image).resize(size[::-1], Image.Resampling.BICUBIC))
    hole = np.asarray(Image.fromarray(~scene.product).resize(size[::-1], Image.Resampling.NEAREST))
    if patch:
        top, left, side = patch
        hole = np.zeros(size, dtype=bool)
        hole[top : top + side, left : left + side] = True
    return Scene(name=name, photo=image, hole=hole, prompt=prompt, seed=1000 + number, ask=ask, settings=how)


SCENES = [
    _scene(0, "form", by_form, (64, 64)),
    _scene(1, "form, tall", by_form, (150, 90), sampler="euler_a"),
    _scene(2, "form, jpeg", by_form, (80, 80), output_format="jpeg"),
    _scene(3, "form, a hole in a large photo", by_form, (900, 1200), patch=(300, 700, 220), padding=64),
    _scene(4, "json, two pictures", by_json, (64, 96), prompt=_LONG),
    _scene(5, "stream, wide", by_stream, (100, 300), feather=3),
    _scene(6, "openai, two pictures", by_openai, (256, 256)),
    _scene(7, "openai, stream", by_openai_stream, (96, 128), guidance_scale=2.0),
    _scene(8, "webuiapi", by_webuiapi, (64, 64)),
    _scene(9, "webuiapi, part", by_webuiapi, (300, 400), patch=(40, 60, 120), inpaint_full_res_padding=24),
]

_ROW = _json(SCENES[0], "CDP_00")
_FORM = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nred'


def _row(name: str, expected: int = 400, path: str = "/paint", **changes: Any) -> Bad:
    return Bad(name=name, path=path, body=json.dumps({**_ROW, **changes}).encode(), expected=(expected,))


BAD = [
    _row("no such category", 404, category="CDP_99"),
    _row("too many steps", steps=10**6),
    _row("no number", seed="many"),
    _row("an unknown field", colour="red"),
    _row("no image", image=base64.b64encode(b"GIF89a" + bytes(2000)).decode()),
    _row("a cut image", image=_ROW["image"][: len(_ROW["image"]) // 8 * 4]),
    _row("a mask of another size", mask=base64.b64encode(SCENES[1].mask_png).decode()),
    _row("a URL", image="https://example.org/a.png"),
    _row("a prompt of 100,000 characters", prompt="mug " * 25_000),
    _row("passed at once", 408, timeout_s=0.001),
    _row("A1111's without pictures", path="/sdapi/v1/img2img", init_images=[]),
    Bad(name="broken JSON", body=b'{"image": '),
    Bad(name="deep JSON", body=b'{"image": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    Bad(name="986 levels", path="/sdapi/v1/img2img", body=b'{"a": ' + b"[" * 986 + b"]" * 986 + b"}"),
    Bad(name="NaN", body=b'{"image": "", "seed": NaN}'),
    Bad(name="half a surrogate pair", body=b'{"image": "", "prompt": "\\ud800"}'),
    Bad(name="a list", body=b"[]"),
    Bad(name="nothing"),
    Bad(name="a cut form", content_type="multipart/form-data; boundary=x", body=_FORM),
    Bad(name="a form without boundary", content_type="multipart/form-data", body=_FORM),
    Bad(name="XML", content_type="text/xml", body=b"<a/>", expected=(415,)),
    Bad(name="no such path", path="/v1/images/variations", body=b"{}", expected=(404,)),
    Bad(name="no such method", method="PUT", expected=(405,)),
    Bad(name="too large", body=b" " * (MAX_BODY + 2**20), expected=(413,)),
]
