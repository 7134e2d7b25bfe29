r"""Products in photos, in our own dialect: `POST /find` says where they are, `POST /enhance` repaints them alone.

    curl -F image=@photo.jpg -F products='hand bag|purse,shoe' http://localhost:8000/find
    curl -F image=@photo.jpg -F products=shoe -F prompt='{product}, studio photography' \
         -o out.png http://localhost:8000/enhance

A photo in which nothing is found comes back as it was sent, byte for byte, with `x-skipped: true` (with `answer=json`:
`"skipped": true`), and nothing is painted for it.
"""

import base64
import io
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BeforeValidator
from starlette.responses import JSONResponse, Response

from inpaint.data.decode import FORMATS
from inpaint.errors import InpaintError
from inpaint.paint.crop import seen
from inpaint.paint.photos import Photo
from inpaint.paint.request import Control
from inpaint.serve.dialects.adapters import adapted
from inpaint.serve.dialects.own import LookFields, adapters_of, described
from inpaint.serve.dialects.painting import PaintCall, PaintEndpoint
from inpaint.serve.http.endpoint import Call, Endpoint, Picture
from inpaint.serve.http.errors import bad
from inpaint.serve.http.images import decode_photo
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.http.receipt import Encoding, Receipt
from inpaint.serve.http.resources import Record
from inpaint.serve.http.schema import Fields, PromptText, Upload, Within, Word
from inpaint.serve.service import Service, Vision
from inpaint.vision.finder import Findings, FindQuery

MOST_PRODUCTS = 32
"""Names, synonyms and negatives together: each costs a part of a forward."""


def _names(value: Any) -> Any:
    """ "shoe,hand bag|purse:0.4" as JSON would say it."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


Names = Annotated[tuple[Word, ...], BeforeValidator(_names, json_schema_input_type=str | tuple[str, ...])]


class ProductFields(Fields):
    """What is looked for."""

    products: Names
    """Each a name, synonyms, and a threshold of its own: `hand bag|purse:0.4`; in a form, separated by commas."""
    negatives: Names = ()
    """What is no product though it looks like one, such as `picture of a shoe`."""


class FindFields(ProductFields):
    """What `POST /find` takes."""

    image: Upload
    """The photo: PNG, JPEG or WEBP."""
    answer: Literal["json", "image"] = "json"
    """image: the mask alone, white where products are."""


class EnhanceFields(LookFields, ProductFields):
    """What `POST /enhance` takes: a form, or JSON with files in base64."""

    prompt: PromptText = "{product}"
    """What to paint, with `{product}` for the names of what was found; the category's token is written into it."""
    conditioning_scale: Annotated[float, Within(0, 10)] = 1.0
    """Weight of what the ControlNet adds; 0: nothing. Without effect where none is served."""


def query_of(fields: ProductFields) -> FindQuery:
    """Raises Problem."""
    try:
        query = FindQuery.parse(fields.products, fields.negatives)
    except InpaintError as error:
        raise bad("products", str(error)) from error
    words = sum(len(product.words) for product in query.products) + len(query.negatives)
    if words > MOST_PRODUCTS:
        raise bad("products", f"{words} names, synonyms and negatives, the limit is {MOST_PRODUCTS}", "out_of_range")
    return query


class FindEndpoint(Endpoint[FindFields, Call[tuple[np.ndarray, FindQuery]]]):
    """Find products in a photo

    Nothing found is an answer: `found` is false, `best` has the best score seen of each product.
    """

    path = "/find"
    fields = FindFields
    answers = ("application/json", "image/png")

    def __init__(self, settings: HttpSettings, service: Service, vision: Vision) -> None:
        self.vision, self.smallest = vision, service.base.size_multiple
        super().__init__(settings)

    def read(self, fields: FindFields) -> Call[tuple[np.ndarray, FindQuery]]:
        query = query_of(fields)
        photo = decode_photo(fields.image, "image", self.settings, self.smallest)
        return FindCall(
            request=(photo.image, query),
            receipt=Receipt(base="finder", base_revision="", seed=0, sampling={"products": list(fields.products)}),
            encoding=Encoding(compress_level=self.settings.png_compress_level),
            pixels=photo.image[..., 0].size,
            as_image=fields.answer == "image",
        )

    async def submit(self, call: Call[tuple[np.ndarray, FindQuery]], record: Record) -> AsyncGenerator[Picture, None]:
        image, query = call.request
        findings = await self.vision.find(image, query)
        mask = np.zeros(image.shape[:2], bool) if findings.mask is None else findings.mask
        yield Picture(image=np.repeat(mask[..., None] * np.uint8(255), 3, axis=2), about=findings)

    def answer(self, call: Call[tuple[np.ndarray, FindQuery]], pictures: Sequence[Picture]) -> Response:
        assert isinstance(call, FindCall)
        (picture,) = pictures
        if call.as_image:
            return super().answer(call, pictures)
        return JSONResponse(told(picture.about) | {"mask": picture.base64 if picture.about.found else None})


@dataclass(frozen=True, kw_only=True, eq=False)
class FindCall(Call[tuple[np.ndarray, FindQuery]]):
    """A checked request to find products."""

    as_image: bool


def told(findings: Findings) -> dict[str, Any]:
    """What was found, as JSON."""
    return {
        "found": bool(findings.found),
        "products": [{"product": one.product, "score": one.score, "box": list(one.box)} for one in findings.found],
        "best": dict(findings.best),
        "overruled": dict(findings.overruled),
        "left_out": findings.left_out,
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class EnhanceCall(PaintCall[EnhanceFields]):
    """A checked request to enhance products; its hole is empty until they are found."""

    query: FindQuery
    photo: Photo
    findings: Findings | None = None
    """Once it is prepared."""


class EnhanceEndpoint(PaintEndpoint[EnhanceFields]):
    """Repaint the products in a photo

    What is found is repainted with a ControlNet, all else keeps its pixels; a photo without any comes back as it was
    sent.
    """

    path = "/enhance"
    fields = EnhanceFields
    answers = (*PaintEndpoint.answers, "application/json")

    def __init__(self, settings: HttpSettings, service: Service, vision: Vision) -> None:
        self.vision = vision
        super().__init__(settings, service)

    def read(self, fields: EnhanceFields) -> EnhanceCall:
        query = query_of(fields)
        if fields.stream:
            raise bad("stream", "pictures are answered when they are done here; leave it out")
        if fields.answer == "image" and fields.n > 1:
            raise bad("answer", f"image, but n is {fields.n}: ask for json")
        catalogue = self.service.catalogue()
        chosen = adapters_of(fields, catalogue)
        prompt, adapters = adapted(fields.prompt, chosen, "adapters", catalogue, self.limits)
        photo = decode_photo(fields.image, "image", self.settings, self.base.size_multiple)
        call = self.call(
            fields,
            prompt=prompt,
            adapters=adapters,
            photo=photo,
            hole=np.zeros(photo.image.shape[:2], dtype=bool),
            sampling=fields.sampling(fields.size),
            seed=fields.seed,
            n=fields.n,
            encoding=fields.encoding(fields.quality, self.settings),
        )
        return EnhanceCall(**vars(call), query=query, photo=photo)

    async def prepare(self, call: PaintCall[EnhanceFields], record: Record) -> PaintCall[EnhanceFields]:
        """Finds the products, and makes what the ControlNet is shown."""
        assert isinstance(call, EnhanceCall)
        findings = await self.vision.find(call.photo.image, call.query)
        hole = findings.mask
        if hole is None:
            return replace(call, findings=findings)
        names = " and ".join(dict.fromkeys(one.product for one in findings.found))
        request = replace(call.request, hole=hole, prompt=call.request.prompt.replace("{product}", names))
        picture = await self.vision.control(seen(self.base, request))
        if picture is not None:
            control = Control(image=picture, scale=call.fields.conditioning_scale, of_seen=True)
            request = replace(request, control=control)
        return replace(call, findings=findings, request=request, finish=partial(call.photo.painted, hole=hole))

    def answer(self, call: PaintCall[EnhanceFields], pictures: Sequence[Picture]) -> Response:
        assert isinstance(call, EnhanceCall) and call.findings is not None
        findings, as_json = call.findings, call.fields.answer == "json" or call.n > 1
        skipped = not findings.found
        headers = {"x-skipped": str(skipped).lower()}
        if skipped and not as_json:
            return Response(call.fields.image, media_type=_media_type(call.fields.image), headers=headers)
        if not as_json:
            response = super().answer(call, pictures)
            response.headers.update(headers)
            return response
        images = [described(call, one) for one in pictures]
        if skipped:
            original = base64.b64encode(call.fields.image).decode("ascii")
            images = [{**one, "b64": original} for one in images]
        answered = {"skipped": skipped, "images": images, "warnings": call.warnings, **told(findings)}
        return JSONResponse(answered, headers=headers)


def _media_type(data: bytes) -> str:
    """Of a photo that was decoded before."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return Image.MIME.get(image.format or "", "application/octet-stream")
