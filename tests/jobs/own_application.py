"""An HTTP application of one's own, as the guide in docs/architecture.md says: photos are enlarged."""

from collections.abc import AsyncGenerator
from typing import Annotated

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve

from inpaint.serve.batcher import Batcher
from inpaint.serve.deployments.model import Model
from inpaint.serve.http.application import build_http
from inpaint.serve.http.endpoint import Call, Endpoint, Picture
from inpaint.serve.http.images import decode_photo
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.http.receipt import Receipt
from inpaint.serve.http.resources import HttpMetrics, Record
from inpaint.serve.http.schema import PictureFields, Upload, Within

EnlargeCall = Call[tuple[np.ndarray, int]]


class EnlargeArgs(BaseModel):
    threads: int | None = None
    http: HttpSettings = HttpSettings()


class EnlargeFields(PictureFields):
    """What `POST /enlarge` takes."""

    image: Upload
    """The photo."""
    factor: Annotated[int, Within(1, 4)] = 2
    """Times larger."""


class EnlargeEndpoint(Endpoint[EnlargeFields, EnlargeCall]):
    """Enlarge a photo"""

    path = "/enlarge"
    fields = EnlargeFields

    def __init__(self, settings: HttpSettings) -> None:
        super().__init__(settings)
        self.batcher: Batcher[tuple[np.ndarray, int], np.ndarray] = Batcher(
            lambda requests, tick: [image.repeat(factor, 0).repeat(factor, 1) for image, factor in requests]
        )

    def read(self, fields: EnlargeFields) -> EnlargeCall:
        photo = decode_photo(fields.image, "image", self.settings, 1).image
        return Call(
            request=(photo, fields.factor),
            receipt=Receipt(base="nearest", base_revision="1", seed=0, sampling={"factor": fields.factor}),
            encoding=fields.encoding(95, self.settings),
            pixels=photo[..., 0].size,
        )

    async def submit(self, call: EnlargeCall, record: Record) -> AsyncGenerator[Picture, None]:
        yield Picture(image=await self.batcher.submit(call.request))


class EnlargeApplication:
    def __init__(self, args: EnlargeArgs, device: str) -> None:
        self.args = args

    def http(self, metrics: HttpMetrics | None = None) -> FastAPI:
        return build_http("enlarging", [EnlargeEndpoint(self.args.http)], self.args.http, self.check, metrics)

    async def check(self) -> bool:
        return True


def build(args: EnlargeArgs) -> serve.Application:
    return Model.options(name="enlarge", ray_actor_options={"num_cpus": 0.2}).bind(EnlargeApplication, args)
