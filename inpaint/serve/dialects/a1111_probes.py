"""What A1111's clients ask before and beside painting: lists of what there is, options, progress, PNG info."""

from typing import Any

from fastapi import APIRouter
from pydantic import ConfigDict
from starlette.requests import Request

from inpaint.errors import InpaintError
from inpaint.serve.dialects.a1111_info import SAMPLERS, check_checkpoint, checkpoint
from inpaint.serve.http.body import parse_json
from inpaint.serve.http.errors import bad
from inpaint.serve.http.receipt import read_infotext
from inpaint.serve.http.resources import Resources
from inpaint.serve.http.schema import Fields, Upload, read_fields
from inpaint.serve.service import Service

_NOTHING: dict[str, Any] = {
    "scripts": {"txt2img": [], "img2img": []},
    "script-info": [],
    "latent-upscale-modes": [],
    "upscalers": [{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}],
    "sd-vae": [],
    "styles": [],
    "prompt-styles": [],
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "extensions": [],
    "cmd-flags": {},
    "memory": {"ram": {}, "cuda": {}},
    "schedulers": [
        {"name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1.0, "need_inner_model": False}
    ],
    "progress": {
        "progress": 0.0,
        "eta_relative": 0.0,
        "state": {"skipped": False, "interrupted": False, "job": "", "job_count": 0, "sampling_step": 0},
        "current_image": None,
        "textinfo": "requests are painted side by side: there is no one progress; POST /paint streams its own",
    },
}
"""GETs whose answer is always the same."""

_NO_OPERATION = ("interrupt", "skip", "refresh-checkpoints", "refresh-loras", "refresh-vae", "refresh-embeddings")
"""POSTs that clients make and that must not change anything here."""


class PngInfoFields(Fields):
    """What `POST /sdapi/v1/png-info` takes."""

    model_config = ConfigDict(extra="ignore")

    image: Upload


def probes_router(resources: Resources, service: Service) -> APIRouter:
    """The paths under /sdapi/v1 beside img2img."""
    routes = APIRouter(prefix="/sdapi/v1", tags=["a1111"])
    for name, answer in _NOTHING.items():
        routes.add_api_route(f"/{name}", _always(answer), methods=["GET"], include_in_schema=False)
    for name in _NO_OPERATION:
        routes.add_api_route(f"/{name}", _always({}), methods=["POST"], include_in_schema=False)

    @routes.get("/samplers")
    async def samplers() -> list[dict[str, Any]]:
        return [{"name": names[0], "aliases": list(names[1:]), "options": {}} for names in SAMPLERS.values()]

    @routes.get("/sd-models")
    async def models() -> list[dict[str, Any]]:
        base = service.base
        names = {"title": checkpoint(base), "model_name": base.name, "filename": base.name, "config": None}
        return [{**names, "hash": base.revision[:10], "sha256": base.revision}]

    @routes.get("/loras")
    async def loras() -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "alias": name,
                "path": f"{name}.safetensors",
                "metadata": {"digest": e.digest, "tokens": e.card.tokens, "prompt_format": e.card.prompt_format},
            }
            for name, e in sorted(service.catalogue().items())
        ]

    @routes.get("/embeddings")
    async def embeddings() -> dict[str, Any]:
        return {"loaded": {}, "skipped": {}}

    @routes.get("/options")
    async def options() -> dict[str, Any]:
        base = service.base
        return {"sd_model_checkpoint": checkpoint(base), "sd_checkpoint_hash": base.revision, "samples_format": "png"}

    @routes.post("/options")
    async def set_options(request: Request) -> None:
        """Only the base that is served can be chosen; other options are another client's, too, and stay."""
        options = await resources.read(request, lambda body, kind: parse_json(body))
        check_checkpoint(options, "sd_model_checkpoint", service.base)

    @routes.post("/png-info")
    async def png_info(request: Request) -> dict[str, Any]:
        info = await resources.read(request, _png_info)
        return {"info": info, "items": {"parameters": info}, "parameters": {}}

    return routes


def _png_info(body: bytes, content_type: str) -> str:
    fields = read_fields(PngInfoFields, parse_json(body), {})
    try:
        return read_infotext(fields.image)
    except InpaintError as error:
        raise bad("image", str(error)) from error


def _always(answer: Any) -> Any:
    async def same() -> Any:
        return answer

    return same
