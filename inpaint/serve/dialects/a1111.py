"""AUTOMATIC1111's `POST /sdapi/v1/img2img` and the paths that its clients probe (`a1111_probes`).

What each field does here:

- `init_images`: one picture, base64 or `data:` URL. `mask`: white is painted, black kept (a mask with transparency:
  opaque is painted, as A1111 reads it); `inpainting_mask_invert` turns it round. Without a mask the picture's
  transparent pixels are painted, or all of it where it has none.
- `mask_blur` is a feather of so many pixels *inside* the hole: kept pixels stay as they are, where A1111 blurs across.
- `inpaint_full_res` (default true): painted around the hole with `inpaint_full_res_padding`; the answer has the
  picture's size, and width x height say at which size it is painted. false: the picture is stretched to width x
  height first.
- `denoising_strength` is our strength, in (0, 1]. `inpainting_fill` 0 to 3 is accepted; below strength 1 all are
  painted as 1 (original).
- `<lora:NAME:WEIGHT>` in the prompt uses an adapter (or a category's); its token is written into the prompt as its card
  says, unless the prompt already has it. `override_settings.sd_model_checkpoint` must be the base.
- Extensions (`script_name`, `alwayson_scripts`) are refused; other fields that have no effect are named in
  `info.ignored`.

`/interrupt` and `/skip` do nothing: they would stop another client's picture. Close the connection instead.
Sources: the public API schema of A1111 and Forge, and what the client `webuiapi` sends.
"""

import base64
import json
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from inpaint.diffusion.samplers import Sampler
from inpaint.models.info import BaseInfo
from inpaint.paint.request import SamplingSettings
from inpaint.serve.dialects import a1111_probes
from inpaint.serve.dialects.a1111_info import info, infotext
from inpaint.serve.wire.body import from_base64, media_type, parse_json
from inpaint.serve.wire.desk import Desk, headers_of
from inpaint.serve.wire.fields import Fields, in_range, shown
from inpaint.serve.wire.intake import Photo, hole_where_white, read_photo, resized
from inpaint.serve.wire.names import as_trained, choose, different
from inpaint.serve.wire.problems import Problem, bad
from inpaint.serve.wire.settings import HttpSettings
from inpaint.serve.wire.wish import (
    LARGEST_SEED,
    Encoding,
    How,
    Wish,
    check_area,
    largest_size,
    random_seed,
    request_of,
)

NAME = "a1111"
CHALLENGE = 'Basic realm="inpaint"'

_TAG = re.compile(r"\s*<(?:lora|lyco):([^<>]*)>", re.IGNORECASE)
_ATTENTION = re.compile(r"\([^()]*:\s*[\d.]+\s*\)")
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "resize_mode": (0,),
    "initial_noise_multiplier": (1, None),
    "image_cfg_scale": (1.5, None),
    "styles": ([], None),
    "subseed": (-1,),
    "subseed_strength": (0,),
    "seed_resize_from_h": (0, -1),
    "seed_resize_from_w": (0, -1),
    "restore_faces": (False, None),
    "tiling": (False, None),
    "do_not_save_samples": (False, True),
    "do_not_save_grid": (False, True),
    "save_images": (False,),
    "override_settings_restore_afterwards": (True, False),
    "eta": (None, 0, 1),
    "s_churn": (0, None),
    "s_tmax": (0, None),
    "s_tmin": (0, None),
    "s_noise": (1, None),
    "s_min_uncond": (0, None),
    "script_args": ([], None),
    "refiner_checkpoint": ("", None),
    "disable_extra_networks": (False,),
    "send_images": (True, False),
    "scheduler": ("", None, "automatic", "Automatic"),
}
"""Fields without effect here -> values that have none in A1111 either; other values are named in `info.ignored`."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request for pictures and what the answer repeats of it."""

    wish: Wish
    payload: dict[str, Any]
    n_iter: int


def router(desk: Desk) -> APIRouter:
    """The paths under /sdapi/v1."""
    routes = APIRouter(prefix="/sdapi/v1", tags=["a1111"])
    a1111_probes.add(routes, desk)

    @routes.post("/img2img", summary="A1111's inpainting", response_model=None, openapi_extra=_BODY)
    async def img2img(request: Request) -> Response:
        job = await desk.understand(request, lambda body, kind: read_job(body, kind, desk))
        sent = await desk.paint(request, job.wish)
        images = [base64.b64encode(one.data).decode("ascii") for one in sent]
        answer = {
            "images": images if job.payload.get("send_images", True) else [],
            "parameters": {**job.payload, "init_images": None, "mask": None},
            "info": json.dumps(info(job.wish, job.n_iter, sent, desk.service.base)),
        }
        return JSONResponse(answer, headers=headers_of(job.wish, desk.service.base.revision, sent))

    return routes


def told(problem: Problem, request_id: str) -> Response:
    """A problem in A1111's form."""
    content = {"error": problem.code, "detail": str(problem), "body": "", "errors": str(problem)}
    return JSONResponse(content, status_code=problem.status, headers=problem.headers)


def read_job(body: bytes, content_type: str, desk: Desk) -> Job:
    """Check everything that a request says. Raises InpaintError."""
    settings, base = desk.settings, desk.service.base
    media_type(content_type, ("application/json",))
    payload = parse_json(body)
    fields = Fields(payload)
    _refuse_extensions(fields)
    ignored = _check_options(fields, base)
    prompt, tags = _without_tags(fields.text("prompt", "", most=settings.max_prompt_chars), settings)
    catalogue = desk.service.catalogue()
    chosen = [choose(name, catalogue, "prompt", weight=weight) for name, weight in tags]
    prompt = as_trained(prompt, chosen, "prompt")
    if _ATTENTION.search(prompt):
        ignored.append("(word:weight) in the prompt: read as plain text")
    n_iter = fields.whole("n_iter", 1, 1, settings.max_pictures)
    n = n_iter * fields.whole("batch_size", 1, 1, settings.max_pictures)
    if n > settings.max_pictures:
        raise bad("batch_size", f"n_iter x batch_size is {n}, the limit is {settings.max_pictures}", "out_of_range")
    full = fields.flag("inpaint_full_res", True)
    how = _how(fields, base, settings, n, full=full)
    width, height = (fields.integer(name, None, base.size_multiple, settings.max_side) for name in ("width", "height"))

    photo, hole = _photo_and_hole(fields, settings, base.size_multiple)
    if not full and width and height:
        photo, hole = _stretched(photo, hole, width, height, fields, settings)
    check_area(photo, n, "batch_size", settings)
    fill = fields.whole("inpainting_fill", 1, 0, 3)
    if fill != 1 and how.sampling.strength < 1:
        ignored.append(f"inpainting_fill {fill}: painted as 1 (original)")
    if how.sampling.size and how.sampling.size > largest_size(base):
        ignored.append(f"width, height: far from what the base was trained at, painted at {base.default_size}")
        how = replace(how, sampling=replace(how.sampling, size=None))
    request = request_of(photo, hole, prompt, how)
    ignored += _without_effect(fields, payload)
    wish = Wish(
        request=request,
        adapters=different(chosen, "prompt", settings.max_adapters),
        n=n,
        model="+".join(one.entry.name for one in chosen) or base.name,
        timeout_s=how.timeout_s,
        encoding=Encoding(),
        warnings=tuple(ignored),
        infotexts=lambda seed: infotext(request, seed, base, chosen),
    )
    return Job(wish=wish, payload=payload, n_iter=n_iter)


def _how(fields: Fields, base: BaseInfo, settings: HttpSettings, n: int, *, full: bool) -> How:
    seed = fields.integer("seed", -1, -1, LARGEST_SEED - n + 1)
    padding = fields.whole("inpaint_full_res_padding", 0, 0, settings.max_padding)
    sides = [fields.integer(name, None, 1, settings.max_side) for name in ("width", "height")]
    size = round((sides[0] * sides[1]) ** 0.5) if full and sides[0] and sides[1] else None
    sampling = SamplingSettings(
        sampler=_sampler(fields),
        steps=fields.whole("steps", min(base.steps, settings.max_steps), 1, settings.max_steps),
        guidance_scale=fields.number("cfg_scale", base.guidance_scale, 0, 100),
        strength=fields.number("denoising_strength", 0.75, 0, 1, above=True),
        padding=padding if full else None,
        feather=round(fields.number("mask_blur", 4, 0, settings.max_feather)),
        size=size,
    )
    return How(
        seed=random_seed() if seed is None or seed < 0 else seed,
        negative_prompt=fields.text("negative_prompt", "", most=settings.max_prompt_chars),
        sampling=sampling,
        timeout_s=fields.number("timeout_s", settings.timeout_s, 0, settings.max_timeout_s, above=True),
    )


def _sampler(fields: Fields) -> Sampler:
    names = {name.casefold(): s for s, known in a1111_probes.SAMPLERS.items() for name in (*known, str(s))}
    for field in ("sampler_name", "sampler_index"):
        given = fields.raw(field)
        if given is None or given == "":
            continue
        if not isinstance(given, str) or given.casefold() not in names:
            known = ", ".join(known[0] for known in a1111_probes.SAMPLERS.values())
            raise bad(field, f"{shown(given)} is not served; give one of {known}", "unknown_sampler")
        fields.raw("sampler_index")
        return names[given.casefold()]
    return Sampler.EULER


def _without_tags(prompt: str, settings: HttpSettings) -> tuple[str, list[tuple[str, float]]]:
    """The prompt without its LoRA tags, and what they said."""
    tags = []
    for match in _TAG.finditer(prompt):
        name, *weights = (part.strip() for part in match[1].split(":"))
        if not name or len(weights) > 1:
            raise bad("prompt", f"{shown(match[0].strip())}; write <lora:NAME:WEIGHT> or <lora:NAME>", "broken_tag")
        weight: Any = Fields({"prompt": weights[0] if weights else None}).number("prompt", 1.0, -1e9, 1e9)
        tags.append((name, in_range("prompt", weight, -settings.max_weight, settings.max_weight)))
    return _TAG.sub("", prompt).strip(" \n,") if tags else prompt, tags


def _refuse_extensions(fields: Fields) -> None:
    if fields.raw("script_name"):
        raise bad("script_name", f"{shown(fields.raw('script_name'))}: no scripts are served here", "no_such_script")
    scripts = fields.raw("alwayson_scripts")
    if scripts:
        name = next(iter(scripts)) if isinstance(scripts, dict) else scripts
        raise bad("alwayson_scripts", f"{shown(name)}: no extensions are served here", "no_such_script")


def _check_options(fields: Fields, base: BaseInfo) -> list[str]:
    options = fields.raw("override_settings")
    if not options:
        return []
    if not isinstance(options, dict):
        raise bad("override_settings", f"{shown(options)}; give an object")
    a1111_probes.check_checkpoint(options, "override_settings.sd_model_checkpoint", base)
    return [f"override_settings.{ascii(name)[1:60]}" for name in sorted(options.keys() - {"sd_model_checkpoint"})]


def _photo_and_hole(fields: Fields, settings: HttpSettings, smallest: int) -> tuple[Photo, np.ndarray]:
    images = fields.raw("init_images")
    if not isinstance(images, list) or len(images) != 1:
        count = len(images) if isinstance(images, list) else 0
        raise bad("init_images", f"{count} pictures; send a list of one, in base64", "one_image")
    photo = read_photo(from_base64(images[0], "init_images"), "init_images", settings, smallest)
    mask, invert = fields.raw("mask"), fields.flag("inpainting_mask_invert", False)
    if mask is None:
        if photo.transparent is not None and photo.transparent.any():
            return photo, photo.transparent
        return photo, np.ones(photo.image.shape[:2], dtype=bool)
    hole = hole_where_white(from_base64(mask, "mask"), "mask", photo, settings, alpha_paints=True)
    return photo, ~hole if invert else hole


def _stretched(
    photo: Photo, hole: np.ndarray, width: int, height: int, fields: Fields, settings: HttpSettings
) -> tuple[Photo, np.ndarray]:
    mode = fields.whole("resize_mode", 0, 0, 3)
    old_height, old_width = hole.shape
    same_aspect = abs(width * old_height - height * old_width) <= max(old_height, old_width)
    if mode != 0 and not same_aspect:
        raise bad("resize_mode", f"{mode}; only 0 (stretch) is served where the aspect changes: use inpaint_full_res")
    if width * height > settings.max_pixels or max(width, height) > settings.max_aspect * min(width, height):
        limits = f"{settings.max_pixels:,} pixels and an aspect of {settings.max_aspect:g}"
        raise bad("width", f"{width} x {height}; the limits are {limits}", "out_of_range")
    return resized(photo, hole, width, height)


def _without_effect(fields: Fields, payload: dict[str, Any]) -> list[str]:
    fields.raw("include_init_images")
    return [ascii(n)[1:-1][:60] for n in fields.unread() if n not in _HARMLESS or payload[n] not in _HARMLESS[n]]


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["init_images"]},
                "example": {
                    "init_images": ["iVBORw0..."],
                    "mask": "iVBORw0...",
                    "prompt": "a wooden table <lora:CDP_FOOD:0.8>",
                    "denoising_strength": 1.0,
                    "sampler_name": "Euler a",
                    "steps": 25,
                },
            }
        },
    }
}
