"""Painting's HTTP side: `paint_http(service, settings)` is an ASGI application with all dialects.

POST /v1/images/edits     GET /v1/models      OpenAI's SDKs      (dialects/openai.py)
POST /sdapi/v1/img2img    GET /sdapi/v1/...   A1111's clients    (dialects/a1111.py)
POST /paint               GET /catalogue      ours               (dialects/own.py)
GET /health   GET /ready                      without a key
"""

from fastapi import FastAPI

from inpaint.serve.dialects import a1111, openai
from inpaint.serve.dialects.a1111_info import probes_router
from inpaint.serve.dialects.own import OwnEndpoint, catalogue_router
from inpaint.serve.http.application import build_http
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.http.record import HttpMetrics
from inpaint.serve.http.resources import Resources
from inpaint.serve.service import Service


def paint_http(service: Service, settings: HttpSettings, metrics: HttpMetrics | None = None) -> FastAPI:
    """The application.

    Raises:
        InpaintError: keys are unusable, or there are none and `settings.host` is not a loopback address.
    """
    resources = Resources(settings)
    app = build_http(
        "inpaint",
        [kind(resources, service) for kind in (openai.EditEndpoint, a1111.Img2ImgEndpoint, OwnEndpoint)],
        resources,
        service.healthy,
        metrics,
        dialects=(openai.DIALECT, a1111.DIALECT),
        description=__doc__ or "",
    )
    for router in (openai.models_router(service), probes_router(resources, service), catalogue_router(service)):
        app.include_router(router)
    return app
