"""What A1111's clients ask before and beside painting: lists of what there is, options, progress, PNG info."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from inpaint.diffusion.samplers import Sampler
from inpaint.errors import InpaintError
from inpaint.models.info import BaseInfo
from inpaint.serve.wire.body import from_base64, parse_json
from inpaint.serve.wire.desk import Desk
from inpaint.serve.wire.names import unknown
from inpaint.serve.wire.problems import bad
from inpaint.serve.wire.receipt import read_infotext

SAMPLERS: dict[Sampler, tuple[str, ...]] = {
    Sampler.DDIM: ("DDIM", "ddim"),
    Sampler.EULER: ("Euler", "k_euler"),
    Sampler.EULER_ANCESTRAL: ("Euler a", "k_euler_a", "k_euler_ancestral"),
    Sampler.DPMPP_2M: ("DPM++ 2M", "k_dpmpp_2m"),
    Sampler.LCM: ("LCM", "k_lcm"),
}
"""Our samplers -> A1111's name, then its aliases."""

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


def add(routes: APIRouter, desk: Desk) -> None:
    """Put the probes on the dialect's router."""
    for name, answer in _NOTHING.items():
        routes.add_api_route(f"/{name}", _always(answer), methods=["GET"], include_in_schema=False)
    for name in _NO_OPERATION:
        routes.add_api_route(f"/{name}", _always({}), methods=["POST"], include_in_schema=False)

    @routes.get("/samplers")
    async def samplers() -> list[dict[str, Any]]:
        return [{"name": names[0], "aliases": list(names[1:]), "options": {}} for names in SAMPLERS.values()]

    @routes.get("/sd-models")
    async def models() -> list[dict[str, Any]]:
        base = desk.service.base
        return [
            {
                "title": checkpoint(base),
                "model_name": base.name,
                "hash": base.revision[:10],
                "sha256": base.revision,
                "filename": base.name,
                "config": None,
            }
        ]

    @routes.get("/loras")
    async def loras() -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "alias": name,
                "path": f"{name}.safetensors",
                "metadata": {"digest": e.digest, "tokens": e.card.tokens, "prompt_format": e.card.prompt_format},
            }
            for name, e in sorted(desk.service.catalogue().items())
        ]

    @routes.get("/embeddings")
    async def embeddings() -> dict[str, Any]:
        return {"loaded": {}, "skipped": {}}

    @routes.get("/options")
    async def options() -> dict[str, Any]:
        base = desk.service.base
        return {"sd_model_checkpoint": checkpoint(base), "sd_checkpoint_hash": base.revision, "samples_format": "png"}

    @routes.post("/options")
    async def set_options(request: Request) -> None:
        """Only the base that is served can be chosen; other options are another client's, too, and stay."""
        options = await desk.understand(request, lambda body, kind: parse_json(body))
        check_checkpoint(options, "sd_model_checkpoint", desk.service.base)

    @routes.post("/png-info")
    async def png_info(request: Request) -> dict[str, Any]:
        data = await desk.understand(request, lambda body, kind: from_base64(parse_json(body).get("image"), "image"))
        try:
            info = await desk.offload(read_infotext, data)
        except InpaintError as error:
            raise bad("image", str(error)) from error
        return {"info": info, "items": {"parameters": info}, "parameters": {}}


def checkpoint(base: BaseInfo) -> str:
    """The base as A1111 titles its checkpoints."""
    return f"{base.name} [{base.revision[:10]}]"


def check_checkpoint(options: dict[str, Any], field: str, base: BaseInfo) -> None:
    """Raise Problem 404 where options ask for another base than the one served."""
    wanted = options.get("sd_model_checkpoint")
    known = (checkpoint(base), base.name, base.revision, base.revision[:10])
    if wanted is not None and wanted not in known:
        raise unknown(str(wanted)[:200], known, field)


def _always(answer: Any) -> Any:
    async def same() -> Any:
        return answer

    return same
