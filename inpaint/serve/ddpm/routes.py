"""`POST /fill`: a photo's hole filled by a DDPM of one's own. Masks as in its training: white = keep, black = fill.

curl -F image=@image.png -F mask=@mask.png -o output.png http://localhost:8000/ddpm/fill
"""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

import numpy as np
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from inpaint.diffusion.repaint import PixelSampler, PixelSampling
from inpaint.paint.ddpm_painter import ModelCard
from inpaint.paint.paste import kept_pixels_changed
from inpaint.paint.request import DdpmRequest
from inpaint.serve.http import enclose
from inpaint.serve.wire.body import media_type, parse_form, sort_parts
from inpaint.serve.wire.desk import Counter, record_of, until_gone
from inpaint.serve.wire.fields import Fields
from inpaint.serve.wire.intake import hole_where_white, read_photo
from inpaint.serve.wire.problems import bad
from inpaint.serve.wire.receipt import SOFTWARE, Receipt, encode
from inpaint.serve.wire.record import HttpMetrics
from inpaint.serve.wire.settings import BYTES_PER_PIXEL, HttpSettings
from inpaint.serve.wire.wish import LARGEST_SEED, Encoding, check_area, read_encoding

MAX_JUMPS = 20


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is served."""

    name: str
    revision: str
    """sha256 of the weights."""
    card: ModelCard


@dataclass(frozen=True, kw_only=True)
class Task:
    """A request, checked."""

    request: DdpmRequest
    encoding: Encoding


def build_fill(
    model: Model,
    fill: Callable[[DdpmRequest], Awaitable[np.ndarray]],
    healthy: Callable[[], Awaitable[bool]],
    settings: HttpSettings,
    metrics: HttpMetrics | None = None,
) -> FastAPI:
    """The application.

    Raises:
        InpaintError: no keys, and `settings.host` is not a loopback address.
    """
    counter = Counter(settings)
    app = FastAPI(title="inpaint ddpm", version="1", description=__doc__)

    @app.post("/fill", summary="Fill a photo's hole", response_model=None)
    async def _fill(request: Request) -> Response:
        task = await counter.understand(request, lambda body, kind: read_task(body, kind, model.card, settings))
        order, record = task.request, record_of(request)
        record.model, record.n, record.pixels = model.name, 1, order.hole.size
        counter.hold(record, BYTES_PER_PIXEL * order.hole.size)
        picture = await until_gone(request.receive, _painted(fill, order))
        changed = kept_pixels_changed(order.image, picture, order.hole)
        assert not changed, f"{changed} kept pixels were changed"
        receipt = receipt_of(order, model)
        data = await counter.offload(encode, picture, task.encoding, receipt, settings.png_compress_level)
        headers = {"x-kept-pixels-changed": "0", "x-seed": str(order.seed), "x-base-revision": model.revision}
        return Response(data, media_type=task.encoding.media_type, headers=headers)

    @app.get("/model", summary="What is served")
    async def _model() -> dict[str, object]:
        return {"name": model.name, "revision": model.revision, **model.card.to_json()}

    enclose(app, counter, healthy, metrics)
    return app


async def _painted(fill: Callable[[DdpmRequest], Awaitable[np.ndarray]], request: DdpmRequest) -> np.ndarray:
    return await fill(request) if request.hole.any() else request.image


def read_task(body: bytes, content_type: str, card: ModelCard, settings: HttpSettings) -> Task:
    """Check everything that a request says. Raises InpaintError."""
    media_type(content_type, ("multipart/form-data",))
    files, texts = sort_parts(parse_form(body, content_type, settings), {"image", "mask"}, settings)
    for name in ("image", "mask"):
        if name not in files:
            raise bad(name, "missing: send it as a file of the form", "missing")
    fields = Fields(texts)
    seed = fields.integer("seed", None, 0, LARGEST_SEED)
    sampling = PixelSampling(
        steps=fields.whole("steps", 50, 1, settings.max_steps),
        sampler=PixelSampler(fields.choice("sampler", PixelSampler.DDIM, [str(s) for s in PixelSampler])),
        jump_length=fields.whole("jump_length", 5, 1, settings.max_steps),
        jump_count=fields.whole("jump_count", 1, 1, MAX_JUMPS),
    )
    label = fields.choice("label", "", ["", *card.classes])
    guidance_scale = fields.number("guidance_scale", 1.0, 0, 100)
    feather = fields.whole("feather", 0, 0, settings.max_feather)
    encoding = read_encoding(fields, "quality")
    if fields.unread():
        raise bad(fields.unread()[0], "no field of /fill", "unknown_field")
    photo = read_photo(files["image"], "image", settings, card.unet.multiple)
    check_area(photo, 1, "image", settings)
    keep = hole_where_white(files["mask"], "mask", photo, settings, alpha_paints=False)
    request = DdpmRequest(
        image=photo.image,
        hole=~keep,
        seed=secrets.randbelow(2**32) if seed is None else seed,
        sampling=sampling,
        label=label,
        guidance_scale=guidance_scale,
        feather=feather,
    )
    return Task(request=request, encoding=encoding)


def receipt_of(request: DdpmRequest, model: Model) -> Receipt:
    """What the picture was painted with."""
    return Receipt(
        software=SOFTWARE,
        base=model.name,
        base_revision=model.revision,
        adapters=(),
        seed=request.seed,
        sampling={
            **asdict(request.sampling),
            "label": request.label,
            "guidance_scale": request.guidance_scale,
            "feather": request.feather,
        },
    )
