"""What A1111's clients are told: of each picture (infotext, `info`), and what they ask before and beside painting."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter
from pydantic import ConfigDict
from starlette.requests import Request

from inpaint.errors import InpaintError
from inpaint.models.base import BaseInfo
from inpaint.serve.dialects.a1111_samplers import SAMPLERS, SCHEDULES, listed_samplers, listed_schedules
from inpaint.serve.dialects.adapters import unknown
from inpaint.serve.dialects.painting import PaintCall
from inpaint.serve.http.body import parse_json
from inpaint.serve.http.errors import bad
from inpaint.serve.http.receipt import read_infotext
from inpaint.serve.http.schema import Fields, Upload, read_fields
from inpaint.serve.service import Service


def infotext(call: PaintCall[Any], seed: int) -> str:
    """A picture's settings as A1111 writes them and its PNG Info tab reads them."""
    request, receipt = call.request, call.receipt
    sampling = request.sampling
    height, width = request.hole.shape
    pairs = {
        "Steps": sampling.steps,
        "Sampler": SAMPLERS[sampling.sampler][0],
        "Schedule type": SCHEDULES[sampling.schedule][0],
        "CFG scale": f"{sampling.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{width}x{height}",
        "Model hash": receipt.base_revision[:10],
        "Model": receipt.base,
    }
    if not request.text_alone:
        pairs |= {"Denoising strength": f"{sampling.strength:g}", "Mask blur": sampling.feather}
    if receipt.adapters:
        hashes = ", ".join(f"{use.name}: {use.digest[:12]}" for use in receipt.adapters)
        pairs["Lora hashes"] = f'"{hashes}"'
    tags = "".join(f" <lora:{use.name}:{use.weight:g}>" for use in receipt.adapters)
    negative = f"\nNegative prompt: {request.negative_prompt}" if request.negative_prompt else ""
    return f"{request.prompt}{tags}{negative}\n" + ", ".join(f"{name}: {value}" for name, value in pairs.items())


def info(call: PaintCall[Any], numbers: Sequence[int]) -> dict[str, Any]:
    """What an answer's `info` says, before it is written as JSON. Args: numbers: of the pictures that were painted."""
    request, receipt, sampling = call.request, call.receipt, call.request.sampling
    seeds = [request.seed + number for number in numbers]
    height, width = request.hole.shape
    return {
        "prompt": request.prompt, "all_prompts": [request.prompt] * len(seeds),
        "negative_prompt": request.negative_prompt, "all_negative_prompts": [request.negative_prompt] * len(seeds),
        "seed": request.seed, "all_seeds": seeds,
        "subseed": request.seed, "all_subseeds": seeds, "subseed_strength": 0,
        "width": width, "height": height,
        "sampler_name": SAMPLERS[sampling.sampler][0], "scheduler": SCHEDULES[sampling.schedule][0],
        "cfg_scale": sampling.guidance_scale, "steps": sampling.steps,
        "restore_faces": False, "face_restoration_model": None,
        "sd_model_name": receipt.base, "sd_model_hash": receipt.base_revision[:10],
        "denoising_strength": sampling.strength,
        "extra_generation_params": {}, "index_of_first_image": 0, "styles": [], "clip_skip": 1,
        "infotexts": [infotext(call, seed) for seed in seeds],
        "is_using_inpainting_conditioning": not request.text_alone,
        "ignored": list(call.warnings),
        "adapters": [vars(use) for use in receipt.adapters],
        "kept_pixels_changed": 0,
        "interrupted": len(seeds) < call.n,
    }  # fmt: skip


def checkpoint(base: BaseInfo) -> str:
    """The base as A1111 titles its checkpoints."""
    return f"{base.name} [{base.revision[:10]}]"


def check_checkpoint(options: dict[str, Any], field: str, base: BaseInfo) -> None:
    """Raise Problem 404 where options ask for another base than the one served."""
    wanted = options.get("sd_model_checkpoint")
    known = (checkpoint(base), base.name, base.revision, base.revision[:10])
    if wanted is not None and wanted not in known:
        raise unknown(str(wanted)[:200], known, field)


_NOTHING: dict[str, Any] = {
    **{name: [] for name in (
        "script-info", "latent-upscale-modes", "sd-vae", "styles", "prompt-styles", "hypernetworks", "face-restorers",
        "realesrgan-models", "extensions",
    )},
    "scripts": {"txt2img": [], "img2img": []},
    "embeddings": {"loaded": {}, "skipped": {}},
    "upscalers": [{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}],
    "cmd-flags": {},
    "memory": {"ram": {}, "cuda": {}},
    "samplers": listed_samplers(),
    "schedulers": listed_schedules(),
}  # fmt: skip
"""GETs whose answer is always the same."""

_NO_OPERATION = ("skip", "refresh-checkpoints", "refresh-loras", "refresh-vae", "refresh-embeddings")
"""POSTs that clients make and that must not change anything here."""


class PngInfoFields(Fields):
    """What `POST /sdapi/v1/png-info` takes."""

    model_config = ConfigDict(extra="ignore")

    image: Upload


def probes_router(service: Service) -> APIRouter:
    """The paths under /sdapi/v1 that say what is served."""
    routes = APIRouter(prefix="/sdapi/v1", tags=["a1111"])
    for name, answer in _NOTHING.items():
        routes.add_api_route(f"/{name}", partial(_same, answer), methods=["GET"], include_in_schema=False)
    for name in _NO_OPERATION:
        routes.add_api_route(f"/{name}", partial(_same, {}), methods=["POST"], include_in_schema=False)

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

    @routes.get("/options")
    async def options() -> dict[str, Any]:
        base = service.base
        return {"sd_model_checkpoint": checkpoint(base), "sd_checkpoint_hash": base.revision, "samples_format": "png"}

    @routes.post("/options")
    async def set_options(request: Request) -> None:
        """Only the base that is served can be chosen; other options are another client's, too, and stay."""
        options = await request.state.resources.read(request, lambda body, kind: parse_json(body))
        check_checkpoint(options, "sd_model_checkpoint", service.base)

    @routes.post("/png-info")
    async def png_info(request: Request) -> dict[str, Any]:
        info = await request.state.resources.read(request, _png_info)
        return {"info": info, "items": {"parameters": info}, "parameters": {}}

    return routes


def _png_info(body: bytes, content_type: str) -> str:
    fields = read_fields(PngInfoFields, parse_json(body), {})
    try:
        return read_infotext(fields.image)
    except InpaintError as error:
        raise bad("image", str(error)) from error


async def _same(answer: Any) -> Any:
    return answer
