"""A DDPM of one's own (`python -m ray_jobs.train_ddpm`) as an application: `inpaint.serve.apps.ddpm:build`.

    curl -F image=@image.png -F mask=@mask.png -o output.png http://localhost:8000/ddpm/fill

Masks are as in its training: white = keep, black = fill. One deployment; each replica holds the model.
"""

import dataclasses
import hashlib
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from inpaint.diffusion.ddpm import PixelSampler, PixelSampling
from inpaint.paint.ddpm_painter import DdpmPainter
from inpaint.paint.paste import assert_kept
from inpaint.paint.request import DdpmRequest
from inpaint.recipes.ddpm import load_ddpm
from inpaint.serve.batcher import Batcher
from inpaint.serve.deployments.model import Model
from inpaint.serve.http.application import build_http
from inpaint.serve.http.body import FORM
from inpaint.serve.http.endpoint import Call, Endpoint, Picture
from inpaint.serve.http.errors import bad, shown
from inpaint.serve.http.images import decode_photo, read_hole
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.http.receipt import Receipt
from inpaint.serve.http.resources import HttpMetrics, Record
from inpaint.serve.http.schema import HoleFields, Upload, Within, Word


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


class FillFields(HoleFields):
    """What `POST /fill` takes."""

    image: Upload
    """The photo: PNG, JPEG or WEBP."""
    mask: Upload
    """Same size; white = keep, black = fill."""
    steps: Annotated[int, Within(1, "max_steps")] = 50
    """Denoising steps."""
    sampler: PixelSampler = PixelSampler.DDIM
    """How noise becomes a picture."""
    jump_length: Annotated[int, Within(1, "max_steps")] = 5
    """RePaint: steps that are sampled again."""
    jump_count: Annotated[int, Within(1, 20)] = 1
    """RePaint: how often; 1 is once, without resampling."""
    label: Word = ""
    """Class to paint, where the model has some (GET /model lists them); empty: any."""
    guidance_scale: Annotated[float, Within(0, 100)] = 1.0
    """Towards the label; up to 1 there is none."""
    quality: Annotated[int, Within(0, 100)] = 95
    """Of jpeg and webp."""


class FillEndpoint(Endpoint[FillFields, Call[DdpmRequest]]):
    """Fill a photo's hole"""

    path = "/fill"
    fields = FillFields
    media_types = (FORM,)
    n_field = "image"

    def __init__(self, settings: HttpSettings, application: "DdpmApplication") -> None:
        super().__init__(settings)
        self.application = application

    def read(self, fields: FillFields) -> Call[DdpmRequest]:
        """Names first, then pictures."""
        application, settings = self.application, self.settings
        card = application.painter.card
        if fields.label and fields.label not in card.classes:
            raise bad("label", f"{shown(fields.label)}; the model's classes are: {', '.join(card.classes) or 'none'}")
        photo = decode_photo(fields.image, "image", settings, card.unet.multiple)
        hole = read_hole(fields.mask, photo, settings, "black")
        sampling = fields.model_dump(include={field.name for field in dataclasses.fields(PixelSampling)})
        beside = fields.model_dump(include={"label", "guidance_scale", "feather"})
        seed = secrets.randbelow(2**32) if fields.seed is None else fields.seed
        name, revision = application.name, application.revision
        return Call(
            request=DdpmRequest(image=photo.image, hole=hole, seed=seed, sampling=PixelSampling(**sampling), **beside),
            receipt=Receipt(base=name, base_revision=revision, seed=seed, sampling={**sampling, **beside}),
            encoding=fields.encoding(fields.quality, settings),
            finish=partial(photo.painted, hole=hole),
            pixels=hole.size,
        )

    async def submit(self, call: Call[DdpmRequest], record: Record) -> AsyncGenerator[Picture, None]:
        """One picture; a photo without a hole is its own."""
        request = call.request
        yield Picture(image=await self.application.batcher.submit(request) if request.hole.any() else request.image)


class DdpmApplication:
    """A model and its HTTP side (a `ModelApplication`)."""

    def __init__(self, args: DdpmArgs, painter: DdpmPainter) -> None:
        self.painter = painter
        self.name = Path(args.model).name
        weights = hashlib.sha256()
        for name, tensor in sorted(painter.unet.state_dict().items()):
            weights.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        self.revision = weights.hexdigest()
        self.batcher = batcher_of(painter, max_batch=args.max_batch, max_waiting=args.max_waiting)
        self._args = args

    @classmethod
    def start(cls, args: DdpmArgs, device: str) -> "DdpmApplication":
        """With the model that the arguments name, on a torch device."""
        return cls(args, load_ddpm(args.model, device=device, max_batch=args.max_batch))

    def http(self, metrics: HttpMetrics | None = None) -> FastAPI:
        """The ASGI application. Raises InpaintError: no keys, and the host is not a loopback address."""
        settings = self._args.http
        app = build_http("inpaint ddpm", [FillEndpoint(settings, self)], settings, self.check, metrics, __doc__ or "")

        @app.get("/model", summary="What is served")
        async def _model() -> dict[str, object]:
            return {"name": self.name, "revision": self.revision, **self.painter.card.to_json()}

        return app

    async def check(self) -> bool:
        """Whether a forward ends in time: a real one, or the next one of the batch that is being painted."""
        side = self.painter.card.unet.multiple
        blank = np.zeros((side, side, 3), dtype=np.uint8)
        probe = DdpmRequest(image=blank, hole=np.ones((side, side), dtype=bool), sampling=PixelSampling(steps=1))
        try:
            await self.batcher.check(probe, self._args.health_timeout_s)
        except TimeoutError:
            return False
        return True


def batcher_of(
    painter: DdpmPainter, *, max_batch: int = 16, max_waiting: int = 256
) -> Batcher[DdpmRequest, np.ndarray]:
    """Requests with the same sampling and working shape share the network's calls."""

    def work(requests: Sequence[DdpmRequest], tick: Callable[[], None]) -> list[np.ndarray]:
        pictures = painter.paint(requests, lambda done, total, pictures: tick())
        for request, picture in zip(requests, pictures, strict=True):
            assert_kept(request.image, picture, request.hole)
        return pictures

    return Batcher(work, lambda r: (r.sampling, painter.shape_of(r)), max_batch=max_batch, max_waiting=max_waiting)


def build(args: DdpmArgs) -> serve.Application:
    """The application; replicas, resources and scaling are set in the configuration."""
    folder = args.model if "://" in args.model else str(Path(args.model).resolve())
    return Model.options(name="ddpm").bind(DdpmApplication.start, args.model_copy(update={"model": folder}))
