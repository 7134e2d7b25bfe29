r"""Our own dialect: `POST /paint`, which has everything, and `GET /catalogue`.

The body is a form (files) or JSON (files in base64, with or without a `data:` prefix). White is painted, black is kept;
without a mask, the image's transparent pixels are painted. Unknown fields are refused by name.

    curl -F image=@photo.png -F mask=@mask.png -F category=CDP_FOOD -F prompt='wooden table' \
         -o out.png http://localhost:8000/paint

One picture is answered as itself, several (or with `answer=json`) as JSON; `stream=true` answers server-sent events
`preview`, `painted` and, where it ends early, `error`. Problems are RFC 9457 `application/problem+json` with `code`
and `field`. The answer has the photo's size; png keeps kept pixels bit for bit, jpeg and webp cannot.
"""

import base64
import difflib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from inpaint.serve.dialects.own_docs import PAINT
from inpaint.serve.service import ServedAdapter
from inpaint.serve.wire.body import from_base64, media_type, parse_form, parse_json, sort_parts
from inpaint.serve.wire.desk import Desk, EventStream, Sent, headers_of, sse
from inpaint.serve.wire.fields import Fields, in_range, shown
from inpaint.serve.wire.intake import Photo, hole_where_white, read_photo
from inpaint.serve.wire.names import Chosen, as_trained, choose, different
from inpaint.serve.wire.problems import Problem, bad
from inpaint.serve.wire.settings import HttpSettings
from inpaint.serve.wire.wish import Wish, check_area, read_encoding, read_how, request_of

NAME = "own"
CHALLENGE = 'Bearer realm="inpaint", Basic realm="inpaint"'
MAX_PREVIEWS = 8


@dataclass(frozen=True, kw_only=True)
class Task:
    """A request for pictures and how they are answered."""

    wish: Wish
    answer: str
    """image, json or stream."""


def router(desk: Desk) -> APIRouter:
    """/paint and /catalogue."""
    routes = APIRouter(tags=["paint"])

    @routes.post("/paint", summary="Paint a photo's hole", response_model=None, openapi_extra=PAINT)
    async def paint(request: Request) -> Response:
        task = await desk.understand(request, lambda body, kind: read_task(body, kind, desk))
        wish, revision = task.wish, desk.service.base.revision
        if task.answer == "stream":
            return EventStream(_events(desk, request, wish), headers_of(wish, revision, []), _failed)
        sent = await desk.paint(request, wish)
        headers = headers_of(wish, revision, sent)
        if task.answer == "image":
            return Response(sent[0].data, media_type=wish.encoding.media_type, headers=headers)
        return JSONResponse({"images": [_described(one) for one in sent], "warnings": wish.warnings}, headers=headers)

    @routes.get("/catalogue", summary="What is served, and what is refused and why")
    async def catalogue() -> dict[str, Any]:
        service = desk.service
        return {
            "base": vars(service.base),
            "adapters": {name: _shown_entry(entry) for name, entry in sorted(service.catalogue().items())},
            "refused": dict(service.refused()),
        }

    return routes


def told(problem: Problem, request_id: str) -> Response:
    """A problem as RFC 9457 has it."""
    content = {**_told(problem), "request_id": request_id}
    return JSONResponse(
        content, status_code=problem.status, headers=problem.headers, media_type="application/problem+json"
    )


def read_task(body: bytes, content_type: str, desk: Desk) -> Task:
    """Check everything that a request says. Raises InpaintError."""
    settings, base = desk.settings, desk.service.base
    files, fields = _taken_apart(body, content_type, settings)
    chosen = _adapters(fields, desk.service.catalogue(), settings)
    prompt = as_trained(fields.text("prompt", "", most=settings.max_prompt_chars), chosen, "prompt")
    n = fields.whole("n", 1, 1, settings.max_pictures)
    how = read_how(fields, base, settings, n, size=True)
    encoding = read_encoding(fields, "quality")
    answer = fields.choice("answer", "image" if n == 1 else "json", ["image", "json"])
    if answer == "image" and n > 1:
        raise bad("answer", f"image, but n is {n}: ask for json")
    stream = fields.flag("stream", False)
    previews = fields.whole("previews", 0, 0, MAX_PREVIEWS)
    if fields.unread():
        raise _unknown_field(fields)
    photo, hole = _photo_and_hole(files, settings, base.size_multiple)
    check_area(photo, n, "n", settings)
    wish = Wish(
        request=request_of(photo, hole, prompt, how),
        adapters=different(chosen, "adapters", settings.max_adapters),
        n=n,
        model="+".join(one.entry.name for one in chosen) or base.name,
        timeout_s=how.timeout_s,
        previews=previews if stream else 0,
        encoding=encoding,
        warnings=("previews have no effect without stream",) if previews and not stream else (),
    )
    return Task(wish=wish, answer="stream" if stream else answer)


def _taken_apart(body: bytes, content_type: str, settings: HttpSettings) -> tuple[dict[str, bytes], Fields]:
    if media_type(content_type, ("multipart/form-data", "application/json")) == "multipart/form-data":
        files, texts = sort_parts(parse_form(body, content_type, settings), {"image", "mask"}, settings)
        return files, Fields(texts)
    fields = Fields(parse_json(body))
    given = {name: fields.raw(name) for name in ("image", "mask")}
    return {name: from_base64(value, name) for name, value in given.items() if value is not None}, fields


def _photo_and_hole(files: dict[str, bytes], settings: HttpSettings, smallest: int) -> tuple[Photo, np.ndarray]:
    if "image" not in files:
        raise bad("image", "missing: send the photo", "missing")
    photo = read_photo(files["image"], "image", settings, smallest)
    if "mask" in files:
        return photo, hole_where_white(files["mask"], "mask", photo, settings, alpha_paints=False)
    if photo.transparent is None:
        raise bad("mask", "missing, and the image has no alpha channel: send a grey image, white = paint", "missing")
    return photo, photo.transparent


def _adapters(fields: Fields, catalogue: Mapping[str, ServedAdapter], settings: HttpSettings) -> list[Chosen]:
    """`adapters` is "NAME:WEIGHT,NAME" or [{"name": ..., "weight": ...}]; `category` says whose token is written."""
    category = fields.text("category", "", most=settings.max_field_chars)
    given = fields.raw("adapters")
    if given is None or given == "":
        return [choose(category, catalogue, "category")] if category else []
    most = settings.max_weight
    pairs = [(name, in_range("adapters", weight, -most, most)) for name, weight in _pairs(given)]
    chosen = [choose(name, catalogue, "adapters", weight=weight) for name, weight in pairs]
    if not category:
        return chosen
    having = [one for one in chosen if category in one.entry.card.tokens]
    if len(having) != 1:
        raise bad("category", f"{shown(category)} is known to {len(having)} of the adapters given, not to one")
    return [Chosen(entry=o.entry, category=category, weight=o.weight) if o is having[0] else o for o in chosen]


def _pairs(given: Any) -> list[tuple[str, Any]]:
    if isinstance(given, str):
        return [_pair(text.strip()) for text in given.split(",")]
    wrong = 'give "NAME:WEIGHT,..." or [{"name": NAME, "weight": WEIGHT}, ...]'
    if not isinstance(given, list):
        raise bad("adapters", f"{shown(given)}; {wrong}")
    pairs = []
    for item in given:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str) or item.keys() - {"name", "weight"}:
            raise bad("adapters", f"{shown(item)}; {wrong}")
        pairs.append((item["name"], item.get("weight", 1.0)))
    return pairs


def _pair(text: str) -> tuple[str, float]:
    name, colon, weight = text.rpartition(":")
    return (name, Fields({"adapters": weight}).number("adapters", 1.0, -1e9, 1e9)) if colon else (text, 1.0)


def _unknown_field(fields: Fields) -> Problem:
    name = fields.unread()[0]
    known = [*PAINT["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]]
    near = difflib.get_close_matches(name[:100], known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return Problem(f"{shown(name)} is no field of /paint; {hint}", code="unknown_field", field=name[:100])


async def _events(desk: Desk, request: Request, wish: Wish) -> AsyncGenerator[bytes, None]:
    async with aclosing(desk.sent(request, wish)) as pictures:
        async for one in pictures:
            yield sse("preview" if one.painted is None else "painted", _described(one))


def _failed(problem: Problem) -> bytes:
    return sse("error", _told(problem))


def _told(problem: Problem) -> dict[str, Any]:
    return {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": str(problem),
        "code": problem.code,
        "field": problem.field,
    }


def _described(sent: Sent) -> dict[str, Any]:
    described = {"number": sent.number, "seed": sent.seed, "b64": base64.b64encode(sent.data).decode("ascii")}
    if sent.painted is None:
        return {**described, "index": sent.index}
    painted = sent.painted
    return {
        **described,
        "kept_pixels_changed": painted.kept_pixels_changed,
        "steps": painted.steps,
        "queue_s": painted.queue_s,
        "paint_s": painted.paint_s,
        "batch_rows": painted.batch_rows,
    }


def _shown_entry(entry: ServedAdapter) -> dict[str, Any]:
    card = entry.card
    return {
        "digest": entry.digest,
        "categories": sorted(card.tokens),
        "tokens": card.tokens,
        "prompt_format": card.prompt_format,
        "resolution": card.resolution,
        "rank": card.rank,
        "metrics": card.metrics,
    }
