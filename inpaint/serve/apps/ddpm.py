"""A DDPM of one's own (`python -m ray_jobs.train_ddpm`) as an application: `inpaint.serve.apps.ddpm:build`.

    curl -F image=@image.png -F mask=@mask.png -o output.png http://localhost:8000/ddpm/fill

Masks are as in its training: white = keep, black = fill. One deployment; each replica holds the model.
"""

import hashlib
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from starlette.responses import Response

from inpaint.diffusion.repaint import PixelSampler, PixelSampling
from inpaint.paint.ddpm_painter import DdpmPainter, ModelCard
from inpaint.paint.paste import kept_pixels_changed
from inpaint.paint.request import DdpmRequest
from inpaint.recipes.ddpm import load_ddpm
from inpaint.serve.batcher import Batcher
from inpaint.serve.deployments.model import Model
from inpaint.serve.http.application import build_http
from inpaint.serve.http.body import FORM
from inpaint.serve.http.endpoint import Call, Encoded, Endpoint
from inpaint.serve.http.errors import bad
from inpaint.serve.http.images import check_area, hole_where_white, read_photo
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.http.receipt import Encoding, Receipt, encode
from inpaint.serve.http.record import HttpMetrics, Record
from inpaint.serve.http.resources import Resources
from inpaint.serve.http.schema import LARGEST_SEED, Fields, Upload, Within, Word

MAX_JUMPS = 20


class DdpmArgs(BaseModel):
    """`args` of the application."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    """The output of a training: folder or object-store URL."""
    max_batch: int = Field(default=16, ge=1)
    """Most requests per network call."""
    max_waiting: int = Field(default=256, ge=1)
    """Requests that may wait at a replica; more are told to come back."""
    threads: int | None = Field(default=None, ge=1)
    """Torch threads on CPUs; unset: as many as CPUs that the replica was given."""
    http: HttpSettings = HttpSettings()
    """Limits and keys."""
    health_timeout_s: float = Field(default=60.0, gt=0)
    """A replica whose network has not been called for this long, though asked to, is replaced."""


class FillFields(Fields):
    """What `POST /fill` takes."""

    image: Upload
    """The photo: PNG, JPEG or WEBP."""
    mask: Upload
    """Same size; white = keep, black = fill."""
    seed: Annotated[int, Within(0, LARGEST_SEED)] | None = None
    """Same request, same seed: same picture. Random if not given; x-seed says."""
    steps: Annotated[int, Within(1, "max_steps")] = 50
    """Denoising steps."""
    sampler: PixelSampler = PixelSampler.DDIM
    """How noise becomes a picture."""
    jump_length: Annotated[int, Within(1, "max_steps")] = 5
    """RePaint: steps that are sampled again."""
    jump_count: Annotated[int, Within(1, MAX_JUMPS)] = 1
    """RePaint: how often; 1 is once, without resampling."""
    label: Word = ""
    """Class to paint, where the model has some (GET /model lists them); empty: any."""
    guidance_scale: Annotated[float, Within(0, 100)] = 1.0
    """Towards the label; up to 1 there is none."""
    feather: Annotated[int, Within(0, "max_feather")] = 0
    """Pixels inside the hole over which the photo fades into the painting."""
    output_format: Literal["png", "jpeg", "jpg", "webp"] = "png"
    """Only png keeps kept pixels bit for bit."""
    quality: Annotated[int, Within(0, 100)] = 95
    """Of jpeg and webp."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is served."""

    name: str
    revision: str
    """sha256 of the weights."""
    card: ModelCard


@dataclass(frozen=True, kw_only=True, eq=False)
class FillCall(Call):
    """A checked request."""

    request: DdpmRequest
    encoding: Encoding


class FillEndpoint(Endpoint[FillFields, FillCall, np.ndarray]):
    """Fill a photo's hole."""

    path = "/fill"
    fields = FillFields
    media_types = (FORM,)

    def __init__(
        self, resources: Resources, info: ModelInfo, fill: Callable[[DdpmRequest], Awaitable[np.ndarray]]
    ) -> None:
        super().__init__(resources)
        self.info = info
        self._fill = fill

    def read(self, fields: FillFields) -> FillCall:
        """Black pixels of the mask are the hole."""
        card, settings = self.info.card, self.settings
        if fields.label not in ("", *card.classes):
            raise bad("label", f"{fields.label!a}; give one of {', '.join(card.classes) or 'none: it has no classes'}")
        photo = read_photo(fields.image, "image", settings, card.unet.multiple)
        check_area(photo, 1, "image", settings)
        keep = hole_where_white(fields.mask, "mask", photo, settings, alpha_paints=False)
        request = DdpmRequest(
            image=photo.image,
            hole=~keep,
            seed=secrets.randbelow(2**32) if fields.seed is None else fields.seed,
            sampling=PixelSampling(
                steps=fields.steps,
                sampler=fields.sampler,
                jump_length=fields.jump_length,
                jump_count=fields.jump_count,
            ),
            label=fields.label,
            guidance_scale=fields.guidance_scale,
            feather=fields.feather,
        )
        encoding = Encoding.of(fields.output_format, fields.quality, settings.png_compress_level)
        return FillCall(model=self.info.name, pixels=request.hole.size, request=request, encoding=encoding)

    async def submit(self, call: FillCall, record: Record) -> AsyncGenerator[np.ndarray, None]:
        """One picture; a photo without a hole is its own."""
        yield await self._fill(call.request) if call.request.hole.any() else call.request.image

    def encode(self, call: FillCall, result: np.ndarray) -> bytes:
        """The picture with its receipt."""
        request = call.request
        changed = kept_pixels_changed(request.image, result, request.hole)
        assert not changed, f"{changed} kept pixels were changed"
        sampling = {
            **asdict(request.sampling),
            "label": request.label,
            "guidance_scale": request.guidance_scale,
            "feather": request.feather,
        }
        receipt = Receipt(base=self.info.name, base_revision=self.info.revision, seed=request.seed, sampling=sampling)
        return encode(result, call.encoding, receipt)

    def headers(self, call: FillCall) -> dict[str, str]:
        """What it was painted with."""
        seed = str(call.request.seed)
        return {"x-kept-pixels-changed": "0", "x-seed": seed, "x-base-revision": self.info.revision}

    def answer(self, call: FillCall, results: Sequence[Encoded[np.ndarray]]) -> Response:
        """The picture's file."""
        return Response(results[0].data, media_type=call.encoding.media_type)


class DdpmApplication:
    """The model and its HTTP side (a `ModelApplication`)."""

    def __init__(self, args: DdpmArgs, device: str) -> None:
        self._args = args
        self._painter = load_ddpm(args.model, device=device, max_batch=args.max_batch)
        self._batcher = batcher_of(self._painter, max_batch=args.max_batch, max_waiting=args.max_waiting)
        weights = hashlib.sha256()
        for name, tensor in sorted(self._painter.unet.state_dict().items()):
            weights.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        self._info = ModelInfo(name=Path(args.model).name, revision=weights.hexdigest(), card=self._painter.card)

    def http(self, metrics: HttpMetrics) -> FastAPI:
        """The ASGI application."""
        return ddpm_http(self._info, self._batcher.submit, self._healthy, self._args.http, metrics)

    async def check(self) -> None:
        """A real forward, or the next one of the batch that is being painted. Raises TimeoutError."""
        side = self._painter.card.unet.multiple
        blank = np.zeros((side, side, 3), dtype=np.uint8)
        probe = DdpmRequest(image=blank, hole=np.ones((side, side), dtype=bool), sampling=PixelSampling(steps=1))
        await self._batcher.check(probe, self._args.health_timeout_s)

    async def _healthy(self) -> bool:
        try:
            await self.check()
        except TimeoutError:
            return False
        return True


def batcher_of(
    painter: DdpmPainter, *, max_batch: int = 16, max_waiting: int = 256
) -> Batcher[DdpmRequest, np.ndarray]:
    """Requests with the same sampling and working shape share the network's calls."""

    def work(requests: Sequence[DdpmRequest], tick: Callable[[], None]) -> list[np.ndarray]:
        return painter.paint(requests, lambda done, total, pictures: tick())

    return Batcher(work, lambda r: (r.sampling, painter.shape_of(r)), max_batch=max_batch, max_waiting=max_waiting)


def ddpm_http(
    info: ModelInfo,
    fill: Callable[[DdpmRequest], Awaitable[np.ndarray]],
    healthy: Callable[[], Awaitable[bool]],
    settings: HttpSettings,
    metrics: HttpMetrics | None = None,
) -> FastAPI:
    """The ASGI application. Raises InpaintError: no keys, and `settings.host` is not a loopback address."""
    resources = Resources(settings)
    endpoint = FillEndpoint(resources, info, fill)
    app = build_http("inpaint ddpm", [endpoint], resources, healthy, metrics, description=__doc__ or "")

    @app.get("/model", summary="What is served")
    async def _model() -> dict[str, object]:
        return {"name": info.name, "revision": info.revision, **info.card.to_json()}

    return app


def build(args: DdpmArgs) -> serve.Application:
    """The application; replicas, resources and scaling are set in the configuration."""
    folder = args.model if "://" in args.model else str(Path(args.model).resolve())
    return Model.options(name="ddpm").bind(DdpmApplication, args.model_copy(update={"model": folder}))
