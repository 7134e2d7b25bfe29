"""OpenAI's image edits and generations, as its SDKs send and read them: `client.images.edit(model="CDP_FOOD",
image=..., mask=...)`, `client.images.generate(model="CDP_FOOD", prompt=...)`.

Of an edit what is transparent is painted. Only with `size=auto` are kept pixels bit for bit the photo's; `WxH` resizes
it first. What OpenAI knows and we do not is accepted and named in the header `x-warnings`; what we know beyond OpenAI
goes into `extra_body` (`painting.PaintFields`; `SamplingFields` of a generation).

Errors are OpenAI's; the SDK raises BadRequestError, AuthenticationError, NotFoundError, RateLimitError. Source:
openai-python 3.51, captured on the wire.
"""

import re
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from fastapi import FastAPI
from pydantic import ConfigDict
from starlette.responses import JSONResponse, Response

from inpaint.paint.crop import resize_hole
from inpaint.paint.photos import Photo
from inpaint.serve.dialects.adapters import adapted, categories, choose, unknown
from inpaint.serve.dialects.painting import PaintCall, PaintEndpoint, PaintFields, SamplingFields, largest_size
from inpaint.serve.http.body import FORM, JSON
from inpaint.serve.http.endpoint import Picture, sse
from inpaint.serve.http.errors import Dialect, Problem, bad, shown
from inpaint.serve.http.images import decode_photo, read_hole
from inpaint.serve.http.schema import PromptText, Upload, Within, Word
from inpaint.serve.service import Painted

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_WITHOUT_EFFECT = ("background", "input_fidelity", "moderation", "style", "user", "safety_identifier")
_SIZE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", re.ASCII)
_USAGE = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}


def _error(problem: Problem, request_id: str) -> dict[str, Any]:
    kind = _TYPES.get(problem.status, "server_error" if problem.status >= 500 else "invalid_request_error")
    return {"error": {"message": str(problem), "type": kind, "param": problem.field, "code": problem.code}}


DIALECT = Dialect(name="openai", prefix="/v1/", challenge="Bearer", error=_error)


class OpenAiFields(SamplingFields):
    """What both paths take."""

    model_config = ConfigDict(extra="allow")

    prompt: PromptText
    """What shall be painted."""
    model: Word = ""
    """A category, an adapter, or the base."""
    response_format: Literal["b64_json", "url"] = "b64_json"
    """Only b64_json: pictures are not stored here."""
    output_compression: Annotated[int, Within(0, 100)] = 95
    """Quality of jpeg and webp."""
    quality: Word = "auto"
    """Without effect."""
    partial_images: Annotated[int, Within(0, 3)] = 0
    """Pictures on the way, with stream."""


class EditFields(PaintFields, OpenAiFields):
    """What `POST /v1/images/edits` takes."""

    image: Upload
    """The photo: PNG, JPEG or WEBP."""
    mask: Upload | None = None
    """Same size; alpha 0 = paint. Without it, the image's own transparent pixels are painted."""
    size: Word = "auto"
    """auto, or WIDTHxHEIGHT that the answer fits into."""


class GenerationFields(OpenAiFields):
    """What `POST /v1/images/generations` takes."""

    size: Word = "auto"
    """WIDTHxHEIGHT, or auto: the square that the base was trained at."""


OpenAiFieldsT = TypeVar("OpenAiFieldsT", bound=OpenAiFields)


class OpenAiEndpoint(PaintEndpoint[OpenAiFieldsT]):
    """What both paths do alike."""

    dialect = DIALECT
    answers = ("application/json", "text/event-stream")
    events: ClassVar[str]
    """What a stream's events are called before their dot."""

    @abstractmethod
    def canvas(self, fields: OpenAiFieldsT) -> tuple[Photo | None, np.ndarray]:
        """The photo and its hole, or the hole alone. Raises InpaintError."""

    def read(self, fields: OpenAiFieldsT) -> PaintCall[OpenAiFieldsT]:
        """Names first, then pictures."""
        settings, base = self.settings, self.base
        model = fields.model or base.name
        catalogue = self.service.catalogue()
        chosen = [] if model == base.name else [choose(model, catalogue, "model", also=base.name)]
        prompt, adapters = adapted(fields.prompt, chosen, "model", catalogue, self.limits)
        if fields.response_format == "url":
            raise bad("response_format", "url: pictures are not stored here; ask for b64_json", "url_refused")
        photo, hole = self.canvas(fields)
        return self.call(
            fields,
            prompt=prompt,
            adapters=adapters,
            photo=photo,
            hole=hole,
            sampling=fields.sampling(),
            seed=fields.seed,
            n=fields.n,
            encoding=fields.encoding(fields.output_compression, settings),
            previews=fields.partial_images if fields.stream else None,
            model=model,
            warnings=_warnings(fields) + ([] if hole.any() else ["no pixel is transparent, so nothing is painted"]),
        )

    def answer(self, call: PaintCall[OpenAiFieldsT], pictures: Sequence[Picture]) -> Response:
        data = [{"b64_json": one.base64, "seed": call.request.seed + one.number} for one in pictures]
        return JSONResponse({"created": int(time.time()), "data": data, **_described(call), "usage": _USAGE})

    def event(self, call: PaintCall[OpenAiFieldsT], picture: Picture) -> bytes:
        shared = {"b64_json": picture.base64, "created_at": int(time.time()), **_described(call)}
        if isinstance(picture.about, Painted):
            kind, more = "completed", {"usage": _USAGE, "seed": call.request.seed + picture.number}
            if picture.warnings:
                more["warnings"] = list(picture.warnings)
        else:
            kind, more = "partial_image", {"partial_image_index": picture.about.index}
        kind = f"{self.events}.{kind}"
        return sse(kind, {"type": kind, **shared, "index": picture.number, **more})


class GenerationEndpoint(OpenAiEndpoint[GenerationFields]):
    """OpenAI's image generation

    Pictures from text alone; `model` is a category, an adapter or the base.
    """

    path = "/v1/images/generations"
    fields = GenerationFields
    media_types = (JSON,)
    events = "image_generation"

    def canvas(self, fields: GenerationFields) -> tuple[None, np.ndarray]:
        """All of it is hole."""
        width, height = _sides(fields.size) or (self.base.default_size, self.base.default_size)
        return None, self.whole(width, height, "size", largest_size(self.base) ** 2)


class EditEndpoint(OpenAiEndpoint[EditFields]):
    """OpenAI's image edit

    What is transparent in the mask, or without one in the image, is painted; `model` is a category, an adapter or the
    base.
    """

    path = "/v1/images/edits"
    fields = EditFields
    media_types = (FORM,)
    events = "image_edit"

    def canvas(self, fields: EditFields) -> tuple[Photo, np.ndarray]:
        """At the size asked for."""
        photo = decode_photo(fields.image, "image", self.settings, self.base.size_multiple)
        hole = read_hole(fields.mask, photo, self.settings, "transparent")
        shape = self._fitting(fields.size, hole.shape)
        return photo.resized(shape), resize_hole(hole, shape)

    def add_to(self, app: FastAPI) -> None:
        """And `GET /v1/models`."""
        super().add_to(app)

        @app.get("/v1/models", summary="Base, categories and adapters")
        async def models() -> dict[str, Any]:
            return {"object": "list", "data": list(self._models().values())}

        @app.get("/v1/models/{model:path}", summary="One of them")
        async def model(model: str) -> dict[str, Any]:
            known = self._models()
            if model not in known:
                raise unknown(model, list(known), "model")
            return known[model]

    def _models(self) -> dict[str, dict[str, Any]]:
        catalogue, base = self.service.catalogue(), self.base
        kinds: dict[str, dict[str, Any]] = {base.name: {"kind": "base", "revision": base.revision}}
        kinds |= {name: {"kind": "adapter", "digest": adapter.digest} for name, adapter in catalogue.items()}
        kinds |= {name: {"kind": "category", "adapters": adapters} for name, adapters in categories(catalogue).items()}
        shared = {"object": "model", "created": 0, "owned_by": "inpaint"}
        return {name: {"id": name, **shared, **kind} for name, kind in kinds.items()}

    def _fitting(self, size: str, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of the answer."""
        height, width = shape
        wanted = _sides(size)
        if wanted is None:
            return height, width
        scale = min(wanted[0] / width, wanted[1] / height)
        wide, high = max(1, round(width * scale)), max(1, round(height * scale))
        least, most, pixels = self.base.size_multiple, self.settings.max_side, self.settings.max_pixels
        if min(wide, high) < least or max(wide, high) > most or wide * high > pixels:
            raise bad(
                "size",
                f"{shown(size)} makes the photo {wide} x {high}; sides may have {least} to {most:,} pixels, and "
                f"together {pixels:,}",
                "out_of_range",
            )
        return high, wide


def _sides(size: str) -> tuple[int, int] | None:
    """Width and height; None: auto."""
    if size == "auto":
        return None
    wanted = _SIZE.fullmatch(size)
    if wanted is None:
        raise bad("size", f"{shown(size)}; give auto or WIDTHxHEIGHT in pixels")
    return int(wanted[1]), int(wanted[2])


def _warnings(fields: OpenAiFields) -> list[str]:
    """What was given and has no effect."""
    given = {"quality": fields.quality, **(fields.model_extra or {})}
    known = [name for name in ("quality", *_WITHOUT_EFFECT) if given.get(name, "auto") not in ("auto", "opaque")]
    strange = sorted(given.keys() - {"quality", *_WITHOUT_EFFECT})
    return [f"{name} has no effect" for name in known] + [f"{shown(name)} is unknown" for name in strange]


def _described(call: PaintCall[Any]) -> dict[str, str]:
    height, width = call.request.hole.shape
    form = call.encoding.format
    return {"background": "opaque", "output_format": form, "quality": call.fields.quality, "size": f"{width}x{height}"}
