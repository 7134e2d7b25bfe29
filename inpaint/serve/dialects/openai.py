"""OpenAI's image edits, as its SDKs send and read them: `client.images.edit(model="CDP_FOOD", image=..., mask=...)`.

- `model`: a category, an adapter or the base; without it the base. `GET /v1/models` lists all.
- `mask`: its transparent pixels (alpha 0) are painted; without a mask, the image's own. A mask without alpha is
  refused.
- `size`: `auto` is the photo's own size, and only then are kept pixels bit for bit the photo's. `WxH`: the photo is
  resized before it is painted, to the largest size of its own aspect that fits; the answer's `size` says which.
- `output_format`: png (default) keeps pixels exactly; jpeg and webp do not, and `x-kept-pixels-changed` is counted
  before.
- Beyond OpenAI (in `extra_body`): seed, steps, guidance_scale, strength, sampler, negative_prompt, padding, feather,
  timeout_s.
- `quality`, `background` and what else OpenAI knows is accepted without effect and named in the header `x-warnings`.

Errors are OpenAI's; the SDK raises BadRequestError, AuthenticationError, NotFoundError, RateLimitError. Source:
openai-python 3.51, captured on the wire.
"""

import base64
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from inpaint.serve.wire.body import media_type, parse_form, sort_parts
from inpaint.serve.wire.desk import Desk, EventStream, Sent, headers_of, sse
from inpaint.serve.wire.fields import Fields, shown
from inpaint.serve.wire.intake import Photo, hole_where_transparent, read_photo, resized
from inpaint.serve.wire.names import as_trained, categories, choose, different, unknown
from inpaint.serve.wire.problems import Problem, bad
from inpaint.serve.wire.settings import HttpSettings
from inpaint.serve.wire.wish import Wish, check_area, read_encoding, read_how, request_of

NAME = "openai"
CHALLENGE = "Bearer"
MAX_PREVIEWS = 3

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_WITHOUT_EFFECT = ("quality", "background", "input_fidelity", "moderation", "user", "safety_identifier")
_USAGE = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A request for edits."""

    wish: Wish
    stream: bool
    quality: str


def router(desk: Desk) -> APIRouter:
    """The paths under /v1."""
    routes = APIRouter(prefix="/v1", tags=["openai"])

    @routes.post("/images/edits", summary="OpenAI's image edit", openapi_extra=_BODY, response_model=None)
    async def edits(request: Request) -> Response:
        edit = await desk.understand(request, lambda body, kind: read_edit(body, kind, desk))
        revision = desk.service.base.revision
        if edit.stream:
            return EventStream(_events(desk, request, edit), headers_of(edit.wish, revision, []), _failed)
        sent = await desk.paint(request, edit.wish)
        answer = {
            "created": int(time.time()),
            "data": [{"b64_json": _text(one), "seed": one.seed} for one in sent],
            **_described(edit),
            "usage": _USAGE,
        }
        return JSONResponse(answer, headers=headers_of(edit.wish, revision, sent))

    @routes.get("/models", summary="Base, categories and adapters")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": list(_models(desk).values())}

    @routes.get("/models/{model:path}", summary="One of them")
    async def model(model: str) -> dict[str, Any]:
        known = _models(desk)
        if model not in known:
            raise await desk.offload(unknown, model, list(known), "model")
        return known[model]

    return routes


def told(problem: Problem, request_id: str) -> Response:
    """A problem in OpenAI's form."""
    return JSONResponse(_error(problem), status_code=problem.status, headers=problem.headers)


def read_edit(body: bytes, content_type: str, desk: Desk) -> Edit:
    """Check everything that a request says. Raises InpaintError."""
    settings, base = desk.settings, desk.service.base
    media_type(content_type, ("multipart/form-data",))
    files, texts = sort_parts(parse_form(body, content_type, settings), {"image", "mask"}, settings)
    fields = Fields(texts)
    model = fields.text("model", "", most=settings.max_field_chars) or base.name
    catalogue = desk.service.catalogue()
    chosen = [] if model == base.name else [choose(model, catalogue, "model", also=base.name)]
    if fields.raw("prompt") is None:
        raise bad("prompt", "missing: say what shall be painted", "missing")
    prompt = as_trained(fields.text("prompt", "", most=settings.max_prompt_chars), chosen, "prompt")
    n = fields.whole("n", 1, 1, settings.max_pictures)
    if fields.choice("response_format", "b64_json", ["b64_json", "url"]) == "url":
        raise bad("response_format", "url: pictures are not stored here; ask for b64_json", "url_refused")
    stream = fields.flag("stream", False)
    previews = fields.whole("partial_images", 0, 0, MAX_PREVIEWS)
    encoding = read_encoding(fields, "output_compression")
    how = read_how(fields, base, settings, n, size=False)
    size = fields.text("size", "auto", most=20)
    quality = fields.text("quality", "auto", most=20)
    warnings = [f"{name} has no effect" for name in _WITHOUT_EFFECT if fields.raw(name) not in (None, "auto", "opaque")]
    warnings += [f"{shown(name)} is unknown" for name in fields.unread()]

    photo, hole = _photo_and_hole(files, settings, base.size_multiple)
    width, height = _fitting(size, photo, base.size_multiple, settings)
    photo, hole = resized(photo, hole, width, height)
    check_area(photo, n, "n", settings)
    if not hole.any():
        warnings.append("no pixel is transparent, so nothing is painted")
    wish = Wish(
        request=request_of(photo, hole, prompt, how),
        adapters=different(chosen, "model", settings.max_adapters),
        n=n,
        model=model,
        timeout_s=how.timeout_s,
        previews=previews if stream else 0,
        encoding=encoding,
        warnings=tuple(warnings),
    )
    return Edit(wish=wish, stream=stream, quality=quality or "auto")


def _photo_and_hole(files: dict[str, bytes], settings: HttpSettings, smallest: int) -> tuple[Photo, Any]:
    if "image" not in files:
        raise bad("image", "missing: send the photo as a file", "missing")
    photo = read_photo(files["image"], "image", settings, smallest)
    if "mask" in files:
        return photo, hole_where_transparent(files["mask"], "mask", photo, settings)
    if photo.transparent is None:
        raise bad(
            "mask", "missing, and the image has no alpha channel: make what shall be painted transparent", "missing"
        )
    return photo, photo.transparent


def _fitting(size: str, photo: Photo, smallest: int, settings: HttpSettings) -> tuple[int, int]:
    """Width and height of the answer."""
    height, width = photo.image.shape[:2]
    if size in ("auto", ""):
        return width, height
    wanted = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", size, re.ASCII)
    if wanted is None:
        raise bad("size", f"{shown(size)}; give auto or WIDTHxHEIGHT in pixels")
    scale = min(int(wanted[1]) / width, int(wanted[2]) / height)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    if min(wide, high) < smallest or max(wide, high) > settings.max_side or wide * high > settings.max_pixels:
        raise bad(
            "size",
            f"{shown(size)} makes the photo {wide} x {high}; sides may have {smallest} to {settings.max_side:,} "
            f"pixels, and together {settings.max_pixels:,}",
            "out_of_range",
        )
    return wide, high


async def _events(desk: Desk, request: Request, edit: Edit) -> AsyncGenerator[bytes, None]:
    async with aclosing(desk.sent(request, edit.wish)) as pictures:
        async for one in pictures:
            shared = {"b64_json": _text(one), "created_at": int(time.time()), **_described(edit), "index": one.number}
            if one.painted is None:
                kind: str = "image_edit.partial_image"
                more: dict[str, Any] = {"partial_image_index": one.index}
            else:
                kind, more = "image_edit.completed", {"usage": _USAGE, "seed": one.seed}
            yield sse(kind, {"type": kind, **shared, **more})


def _failed(problem: Problem) -> bytes:
    return sse("error", _error(problem))


def _described(edit: Edit) -> dict[str, str]:
    height, width = edit.wish.request.hole.shape
    return {
        "background": "opaque",
        "output_format": edit.wish.encoding.format,
        "quality": edit.quality,
        "size": f"{width}x{height}",
    }


def _text(sent: Sent) -> str:
    return base64.b64encode(sent.data).decode("ascii")


def _error(problem: Problem) -> dict[str, Any]:
    kind = _TYPES.get(problem.status, "server_error" if problem.status >= 500 else "invalid_request_error")
    return {"error": {"message": str(problem), "type": kind, "param": problem.field, "code": problem.code}}


def _models(desk: Desk) -> dict[str, dict[str, Any]]:
    catalogue, base = desk.service.catalogue(), desk.service.base
    shared = {"object": "model", "created": 0, "owned_by": "inpaint"}
    models = {name: {"id": name, **shared, "kind": "adapter", "digest": e.digest} for name, e in catalogue.items()}
    for category, adapters in categories(catalogue).items():
        models[category] = {"id": category, **shared, "kind": "category", "adapters": adapters}
    return {base.name: {"id": base.name, **shared, "kind": "base", "revision": base.revision}, **models}


_PROPERTIES: dict[str, Any] = {
    "image": {"type": "string", "format": "binary"},
    "mask": {"type": "string", "format": "binary", "description": "alpha 0 = paint"},
    "prompt": {"type": "string"},
    "model": {"type": "string", "description": "a category, an adapter, or the base"},
    "n": {"type": "integer", "default": 1},
    "size": {"type": "string", "default": "auto"},
    "output_format": {"type": "string", "enum": ["png", "jpeg", "webp"]},
    "stream": {"type": "boolean"},
    "partial_images": {"type": "integer", "minimum": 0, "maximum": MAX_PREVIEWS},
    "seed": {"type": "integer"},
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["image", "prompt"], "properties": _PROPERTIES}
            }
        },
    }
}
