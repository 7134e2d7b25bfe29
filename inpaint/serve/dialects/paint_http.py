"""Painting's HTTP side: `paint_http(service, settings)` is an ASGI application with all dialects.

POST /v1/images/edits     /v1/images/generations   GET /v1/models      OpenAI's SDKs      (dialects/openai.py)
POST /sdapi/v1/img2img    /sdapi/v1/txt2img        GET /sdapi/v1/...   A1111's clients    (dialects/a1111.py)
POST /paint                                        GET /catalogue      ours               (dialects/own.py)
POST /find   POST /enhance                         where there is a finder                (dialects/photoshoot.py)
GET /health   GET /ready                      without a key
"""

from typing import Any

from fastapi import FastAPI

from inpaint.serve.dialects.a1111 import Img2ImgEndpoint, Txt2ImgEndpoint
from inpaint.serve.dialects.a1111_tasks import Tasks
from inpaint.serve.dialects.openai import EditEndpoint, GenerationEndpoint
from inpaint.serve.dialects.own import OwnEndpoint
from inpaint.serve.dialects.photoshoot import EnhanceEndpoint, FindEndpoint
from inpaint.serve.http.application import build_http
from inpaint.serve.http.endpoint import Endpoint
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.http.resources import HttpMetrics
from inpaint.serve.service import Service, Vision


def paint_http(
    service: Service,
    settings: HttpSettings,
    metrics: HttpMetrics | None = None,
    tasks: Tasks | None = None,
    vision: Vision | None = None,
) -> FastAPI:
    """The application; `vision` finds products, None: no path asks it to. Raises InpaintError, as `build_http` does."""
    tasks = tasks or Tasks()
    endpoints: list[Endpoint[Any, Any]] = [
        *(kind(settings, service) for kind in (EditEndpoint, GenerationEndpoint)),
        *(kind(settings, service, tasks) for kind in (Img2ImgEndpoint, Txt2ImgEndpoint)),
        OwnEndpoint(settings, service),
    ]
    if vision is not None:
        endpoints += [FindEndpoint(settings, service, vision), EnhanceEndpoint(settings, service, vision)]
    return build_http("inpaint", endpoints, settings, service.healthy, metrics, __doc__ or "")
