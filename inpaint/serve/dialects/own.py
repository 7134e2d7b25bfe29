r"""Our own dialect: `POST /paint`, which has everything, and `GET /catalogue`.

    curl -F image=@photo.png -F mask=@mask.png -F category=CDP_FOOD -F prompt='wooden table' \
         -o out.png http://localhost:8000/paint

One picture is answered as itself, several (or with `answer=json`) as JSON; `stream=true` answers server-sent events
`preview`, `painted` and, where it ends early, `error`. Problems are RFC 9457 `application/problem+json` with `code`
and `field`. The answer has the photo's size.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI
from pydantic import BeforeValidator, ConfigDict, JsonValue
from starlette.responses import JSONResponse, Response

from inpaint.data.panels import ChosenPanels, Grid
from inpaint.errors import InpaintError
from inpaint.paint.photos import Photo
from inpaint.serve.dialects.adapters import ChosenAdapter, adapted, choose
from inpaint.serve.dialects.painting import PaintCall, PaintEndpoint, PaintFields
from inpaint.serve.http.endpoint import Picture, sse
from inpaint.serve.http.errors import bad, shown
from inpaint.serve.http.images import decode_photo, read_hole
from inpaint.serve.http.schema import Fields, Upload, Within, Word
from inpaint.serve.service import Painted, ServedAdapter


class AdapterWeight(Fields):
    """One adapter of a request."""

    name: Word
    weight: Annotated[float, Within("-max_weight", "max_weight")] = 1.0


def _from_text(value: Any) -> Any:
    """ "NAME:WEIGHT,NAME" as JSON would say it."""
    if not isinstance(value, str):
        return value
    split = [text.strip().rpartition(":") for text in value.split(",")]
    return [{"name": name, "weight": weight} if colon else {"name": weight} for name, colon, weight in split]


def _numbers(value: Any) -> Any:
    """ "2,3" as JSON would say it."""
    return value.split(",") if isinstance(value, str) else value


_EXAMPLES: list[JsonValue] = [
    {"image": "iVBORw0...", "mask": "iVBORw0...", "category": "CDP_FOOD", "seed": 42},
    {"image": "iVBORw0...", "prompt": "a table", "adapters": [{"name": "CDP_FOOD", "weight": 0.8}], "n": 4},
]


class LookFields(PaintFields):
    """What our own dialect's paths to pictures of photos share."""

    image: Upload
    """The photo: PNG, JPEG or WEBP."""
    category: Word = ""
    """Whose look is painted: GET /catalogue lists them."""
    adapters: Annotated[
        tuple[AdapterWeight, ...], BeforeValidator(_from_text, json_schema_input_type=str | tuple[AdapterWeight, ...])
    ] = ()
    """In place of, or with, a category; in a form, `NAME:WEIGHT,NAME`. `<lora:NAME:WEIGHT>` in the prompt is another
    way."""
    size: Annotated[int, Within("size_multiple", "largest_size")] | None = None
    """Side of the square whose area is painted; default: what the base was trained at."""
    quality: Annotated[int, Within(0, 100)] = 95
    """Of jpeg and webp."""
    answer: Literal["image", "json"] | None = None
    """Default: image for one, json for several."""


class OwnFields(LookFields):
    """What `POST /paint` takes: a form, or JSON with files in base64 (with or without a `data:` prefix)."""

    model_config = ConfigDict(json_schema_extra={"examples": _EXAMPLES})

    mask: Upload | None = None
    """Same size; white = paint. Without it and without panels, transparent pixels are painted."""
    panels: Annotated[tuple[int, ...], BeforeValidator(_numbers, json_schema_input_type=str | tuple[int, ...])] = ()
    """Of a composite, in place of a mask: the panels to paint, 0 at the top left, 1 beside it; in a form, `2,3`."""
    grid: Word = "2x2"
    """Of a composite: rows x columns; gutters and borders are found, and kept."""
    previews: Annotated[int, Within(0, 8)] = 0
    """Pictures on the way, with stream."""


class OwnEndpoint(PaintEndpoint[OwnFields]):
    """Paint a photo's hole

    White is painted, black is kept; without a mask, the image's transparent pixels are painted.
    """

    path = "/paint"
    fields = OwnFields
    answers = (*PaintEndpoint.answers, "application/json", "text/event-stream")

    def read(self, fields: OwnFields) -> PaintCall[OwnFields]:
        """Names first, then pictures."""
        catalogue = self.service.catalogue()
        chosen = adapters_of(fields, catalogue)
        prompt, adapters = adapted(fields.prompt, chosen, "adapters", catalogue, self.limits)
        if fields.answer == "image" and fields.n > 1:
            raise bad("answer", f"image, but n is {fields.n}: ask for json")
        photo = decode_photo(fields.image, "image", self.settings, self.base.size_multiple)
        sampling = fields.sampling(fields.size)
        return self.call(
            fields,
            prompt=prompt,
            adapters=adapters,
            photo=photo,
            hole=self._hole(fields, photo),
            sampling=sampling.of_composite() if fields.panels else sampling,
            seed=fields.seed,
            n=fields.n,
            encoding=fields.encoding(fields.quality, self.settings),
            previews=fields.previews if fields.stream else None,
            warnings=list(_without_effect(fields)),
        )

    def _hole(self, fields: OwnFields, photo: Photo) -> np.ndarray:
        if not fields.panels:
            return read_hole(fields.mask, photo, self.settings, "white")
        if fields.mask is not None:
            raise bad("mask", "panels say what is painted: leave one of the two out")
        try:
            chosen = ChosenPanels(fields.panels, Grid.parse(fields.grid))
        except InpaintError as error:
            raise bad("panels", str(error), "out_of_range") from error
        return chosen.hole(photo.image)

    def answer(self, call: PaintCall[OwnFields], pictures: Sequence[Picture]) -> Response:
        if call.n == 1 and call.fields.answer != "json":
            return super().answer(call, pictures)
        return JSONResponse({"images": [described(call, one) for one in pictures], "warnings": call.warnings})

    def event(self, call: PaintCall[OwnFields], picture: Picture) -> bytes:
        return sse("painted" if isinstance(picture.about, Painted) else "preview", described(call, picture))

    def add_to(self, app: FastAPI) -> None:
        """And `GET /catalogue`."""
        super().add_to(app)

        @app.get("/catalogue", summary="What is served, and what is refused and why")
        async def catalogue() -> dict[str, Any]:
            of_base = ("name", "revision", "default_size", "size_multiple", "guidance_scale", "steps")
            of_card = ("tokens", "prompt_format", "resolution", "rank", "metrics")
            return {
                "base": {about: getattr(self.base, about) for about in of_base},
                "adapters": {
                    name: {
                        "digest": adapter.digest,
                        "categories": sorted(adapter.card.tokens),
                        **{about: getattr(adapter.card, about) for about in of_card},
                    }
                    for name, adapter in sorted(self.service.catalogue().items())
                },
                "refused": dict(self.service.refused()),
            }


def adapters_of(fields: LookFields, catalogue: Mapping[str, ServedAdapter]) -> list[ChosenAdapter]:
    """Those named; `category` alone finds its adapter, beside `adapters` it says whose token is written."""
    category = fields.category
    if not fields.adapters:
        return [choose(category, catalogue, "category")] if category else []
    chosen = [choose(one.name, catalogue, "adapters", weight=one.weight) for one in fields.adapters]
    if not category:
        return chosen
    having = [one for one in chosen if category in one.adapter.card.tokens]
    if len(having) != 1:
        raise bad("category", f"{shown(category)} is known to {len(having)} of the adapters given, not to one")
    return [replace(one, category=category) if one is having[0] else one for one in chosen]


def _without_effect(fields: OwnFields) -> Iterator[str]:
    if fields.previews and not fields.stream:
        yield "previews have no effect without stream"
    if "grid" in fields.model_fields_set and not fields.panels:
        yield "grid has no effect without panels"


def described(call: PaintCall[Any], picture: Picture) -> dict[str, Any]:
    """A picture and what it took, as JSON."""
    figures = {name: value for name, value in vars(picture.about).items() if name != "image"}
    number = picture.number
    return {"number": number, "seed": call.request.seed + number, "b64": picture.base64, **figures}
