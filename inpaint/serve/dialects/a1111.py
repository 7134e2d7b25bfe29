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

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError
from starlette.responses import JSONResponse, Response

from inpaint.paint.request import PaintRequest, SamplingSettings
from inpaint.serve.dialects.a1111_info import SAMPLERS, check_checkpoint, info, infotext
from inpaint.serve.dialects.adapters import as_trained, choose, different
from inpaint.serve.dialects.call import PaintCall, PaintEndpoint, PaintEvent, first_seed, in_order, largest_size
from inpaint.serve.http.body import JSON
from inpaint.serve.http.endpoint import Encoded
from inpaint.serve.http.errors import Dialect, Problem, bad, shown
from inpaint.serve.http.images import Photo, check_area, hole_where_white, read_photo, resized
from inpaint.serve.http.receipt import Encoding
from inpaint.serve.http.schema import LARGEST_SEED, Fields, Limits, Prompt, Upload, Within, read_fields

_TAG = re.compile(r"\s*<(?:lora|lyco):([^<>]*)>", re.IGNORECASE)
_ATTENTION = re.compile(r"\([^()]*:\s*[\d.]+\s*\)")
_SAMPLER_OF = {name.casefold(): s for s, names in SAMPLERS.items() for name in (*names, str(s))}
_HARMLESS: dict[str, tuple[Any, ...]] = {
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
    "scheduler": ("", None, "automatic", "Automatic"),
}
"""Fields without effect here -> values that have none in A1111 either; other values are named in `info.ignored`."""


def _error_response(problem: Problem, request_id: str) -> Response:
    content = {"error": problem.code, "detail": str(problem), "body": "", "errors": str(problem)}
    return JSONResponse(content, problem.status, problem.headers)


DIALECT = Dialect(name="a1111", prefix="/sdapi/", challenge='Basic realm="inpaint"', error_response=_error_response)


def _one(value: Any) -> Any:
    if not isinstance(value, list) or len(value) != 1:
        count = len(value) if isinstance(value, list) else 0
        raise PydanticCustomError("one_image", f"{count} pictures; send a list of one, in base64")
    return value[0]


def _served(value: str) -> str:
    if value.casefold() not in _SAMPLER_OF:
        known = ", ".join(names[0] for names in SAMPLERS.values())
        raise PydanticCustomError("unknown_sampler", f"{shown(value)} is not served; give one of {known}")
    return value


_Sampler = Annotated[str, AfterValidator(_served)]


class Img2ImgFields(Fields):
    """What `POST /sdapi/v1/img2img` takes and acts upon."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "init_images": ["iVBORw0..."],
                "mask": "iVBORw0...",
                "prompt": "a wooden table <lora:CDP_FOOD:0.8>",
                "denoising_strength": 1.0,
                "sampler_name": "Euler a",
                "steps": 25,
            }
        },
    )

    prompt: Prompt = ""
    """With `<lora:NAME:WEIGHT>` for each adapter."""
    negative_prompt: Prompt = ""
    init_images: Annotated[Upload, BeforeValidator(_one, json_schema_input_type=list[bytes])]
    """A list of one picture."""
    mask: Upload | None = None
    """White is painted; without it, the picture's transparent pixels, or all."""
    inpainting_mask_invert: bool = False
    seed: Annotated[int, Within(-1, LARGEST_SEED)] = -1
    """-1: random."""
    n_iter: Annotated[int, Within(1, "max_pictures")] = 1
    batch_size: Annotated[int, Within(1, "max_pictures")] = 1
    steps: Annotated[int, Within(1, "max_steps")] | None = None
    cfg_scale: Annotated[float, Within(0, 100)] | None = None
    denoising_strength: Annotated[float, Within(0, 1, above=True)] = 0.75
    sampler_name: _Sampler | None = None
    sampler_index: _Sampler | None = None
    """Read where there is no sampler_name."""
    mask_blur: Annotated[float, Within(0, "max_feather")] = 4
    inpaint_full_res: bool = True
    inpaint_full_res_padding: Annotated[int, Within(0, "max_padding")] = 0
    width: Annotated[int, Within("size_multiple", "max_side")] | None = None
    height: Annotated[int, Within("size_multiple", "max_side")] | None = None
    resize_mode: Annotated[int, Within(0, 3)] = 0
    inpainting_fill: Annotated[int, Within(0, 3)] = 1
    timeout_s: Annotated[float, Within(0, "max_timeout_s", above=True)] | None = None
    override_settings: dict[str, Any] | None = None
    """Only `sd_model_checkpoint` is looked at."""
    script_name: Any = None
    """Refused."""
    alwayson_scripts: Any = None
    """Refused."""
    include_init_images: Any = None
    send_images: bool = True

    @property
    def sides(self) -> tuple[int, int] | None:
        """Width and height, where both are given."""
        return (self.width, self.height) if self.width and self.height else None


class LoraTag(Fields):
    """What `<lora:NAME:WEIGHT>` says, read as fields for its limits."""

    prompt: Annotated[float, Within("-max_weight", "max_weight")] = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Img2ImgCall(PaintCall):
    """A checked request, and what the answer repeats of it."""

    parameters: Mapping[str, Any]
    n_iter: int


class Img2ImgEndpoint(PaintEndpoint[Img2ImgFields, Img2ImgCall]):
    """A1111's inpainting"""

    path = "/sdapi/v1/img2img"
    fields = Img2ImgFields
    media_types = (JSON,)
    answers = ("application/json",)

    def read(self, fields: Img2ImgFields) -> Img2ImgCall:
        """Names first, then pictures."""
        settings, base = self.settings, self.service.base
        _refuse_extensions(fields)
        check_checkpoint(fields.override_settings or {}, "override_settings.sd_model_checkpoint", base)
        prompt, tags = _without_tags(fields.prompt, self.limits)
        catalogue = self.service.catalogue()
        chosen = [choose(name, catalogue, "prompt", weight=weight) for name, weight in tags]
        prompt = as_trained(prompt, chosen, "prompt")
        adapters = different(chosen, "prompt", settings.max_adapters)
        n = fields.n_iter * fields.batch_size
        if n > settings.max_pictures:
            message = f"n_iter x batch_size is {n}, the limit is {settings.max_pictures}"
            raise bad("batch_size", message, "out_of_range")
        seed = first_seed(None if fields.seed < 0 else fields.seed, n)
        photo, hole = self._photo_and_hole(fields)
        check_area(photo, n, "batch_size", settings)
        return Img2ImgCall(
            model="+".join(use.name for use in adapters) or base.name,
            n=n,
            pixels=hole.size,
            warnings=tuple(_ignored(fields, prompt, largest_size(base), base.default_size)),
            request=PaintRequest(
                image=photo.image,
                hole=hole,
                prompt=prompt,
                negative_prompt=fields.negative_prompt,
                seed=seed,
                sampling=_sampling(fields, largest_size(base)).resolved(base),
            ),
            adapters=adapters,
            timeout_s=fields.timeout_s or settings.timeout_s,
            encoding=Encoding(compress_level=settings.png_compress_level),
            parameters=fields.model_dump(exclude={"init_images", "mask"}, exclude_unset=True),
            n_iter=fields.n_iter,
        )

    def _photo_and_hole(self, fields: Img2ImgFields) -> tuple[Photo, np.ndarray]:
        settings = self.settings
        photo = read_photo(fields.init_images, "init_images", settings, self.service.base.size_multiple)
        if fields.mask is not None:
            white = hole_where_white(fields.mask, "mask", photo, settings, alpha_paints=True)
            hole = ~white if fields.inpainting_mask_invert else white
        elif photo.transparent is not None and photo.transparent.any():
            hole = photo.transparent
        else:
            hole = np.ones(photo.image.shape[:2], dtype=bool)
        if fields.inpaint_full_res or fields.sides is None:
            return photo, hole
        width, height = fields.sides
        old_height, old_width = hole.shape
        same_aspect = abs(width * old_height - height * old_width) <= max(old_height, old_width)
        if fields.resize_mode != 0 and not same_aspect:
            message = f"{fields.resize_mode}; only 0 (stretch) is served where the aspect changes: use inpaint_full_res"
            raise bad("resize_mode", message)
        if width * height > settings.max_pixels or max(width, height) > settings.max_aspect * min(width, height):
            limits = f"{settings.max_pixels:,} pixels and an aspect of {settings.max_aspect:g}"
            raise bad("width", f"{width} x {height}; the limits are {limits}", "out_of_range")
        return resized(photo, hole, width, height)

    def infotext(self, call: Img2ImgCall, seed: int) -> str:
        """A1111's text."""
        return infotext(call, seed, self.service.base)

    def answer(self, call: Img2ImgCall, results: Sequence[Encoded[PaintEvent]]) -> Response:
        """All pictures in base64, and what A1111 says of them."""
        told = json.dumps(info(call, call.n_iter, self.service.base))
        images = [one.base64 for one in in_order(results)] if call.parameters.get("send_images", True) else []
        parameters = {**call.parameters, "init_images": None, "mask": None}
        return JSONResponse({"images": images, "parameters": parameters, "info": told})


def _sampling(fields: Img2ImgFields, largest: int) -> SamplingSettings:
    side = _side(fields)
    sampler = fields.sampler_name or fields.sampler_index or "euler"
    return SamplingSettings(
        sampler=_SAMPLER_OF[sampler.casefold()],
        steps=fields.steps,
        strength=fields.denoising_strength,
        guidance_scale=fields.cfg_scale,
        size=side if side is not None and side <= largest else None,
        padding=fields.inpaint_full_res_padding if fields.inpaint_full_res else None,
        feather=round(fields.mask_blur),
    )


def _side(fields: Img2ImgFields) -> int | None:
    """Of the square with the area at which is painted, where the request says so."""
    return round((fields.sides[0] * fields.sides[1]) ** 0.5) if fields.inpaint_full_res and fields.sides else None


def _without_tags(prompt: str, limits: Limits) -> tuple[str, list[tuple[str, float]]]:
    """The prompt without its LoRA tags, and what they said."""
    tags = []
    for match in _TAG.finditer(prompt):
        name, *weights = (part.strip() for part in match[1].split(":"))
        if not name or len(weights) > 1:
            raise bad("prompt", f"{shown(match[0].strip())}; write <lora:NAME:WEIGHT> or <lora:NAME>", "broken_tag")
        tags.append((name, read_fields(LoraTag, {"prompt": "".join(weights)}, limits).prompt))
    return _TAG.sub("", prompt).strip(" \n,") if tags else prompt, tags


def _refuse_extensions(fields: Img2ImgFields) -> None:
    if fields.script_name:
        raise bad("script_name", f"{shown(fields.script_name)}: no scripts are served here", "no_such_script")
    scripts = fields.alwayson_scripts
    if scripts:
        name = next(iter(scripts)) if isinstance(scripts, dict) else scripts
        raise bad("alwayson_scripts", f"{shown(name)}: no extensions are served here", "no_such_script")


def _ignored(fields: Img2ImgFields, prompt: str, largest: int, default_size: int) -> list[str]:
    """What was given and has no effect."""
    options = sorted((fields.override_settings or {}).keys() - {"sd_model_checkpoint"})
    ignored = [f"override_settings.{_name(name)}" for name in options]
    if _ATTENTION.search(prompt):
        ignored.append("(word:weight) in the prompt: read as plain text")
    if fields.inpainting_fill != 1 and fields.denoising_strength < 1:
        ignored.append(f"inpainting_fill {fields.inpainting_fill}: painted as 1 (original)")
    if (_side(fields) or 0) > largest:
        ignored.append(f"width, height: far from what the base was trained at, painted at {default_size}")
    if fields.resize_mode and fields.inpaint_full_res:
        ignored.append("resize_mode")
    strange = fields.model_extra or {}
    return ignored + [_name(n) for n in sorted(strange) if n not in _HARMLESS or strange[n] not in _HARMLESS[n]]


def _name(given: str) -> str:
    return ascii(given)[1:-1][:60]
