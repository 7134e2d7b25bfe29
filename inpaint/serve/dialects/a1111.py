"""AUTOMATIC1111's `POST /sdapi/v1/img2img`, as its clients send it; the fields say what each does here.

Extensions are refused; other fields that have no effect are named in `info.ignored`. `/progress` and `/interrupt`
are about the client's own requests (`a1111_tasks`); what an interrupted request has finished is its answer. Sources:
the public API schema of A1111 and Forge, and what the client `webuiapi` sends.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI
from pydantic import AfterValidator, BeforeValidator, ConfigDict
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError
from starlette.responses import JSONResponse, Response

from inpaint.models.base import BaseInfo
from inpaint.paint.crop import resize_hole
from inpaint.paint.photos import Photo
from inpaint.paint.request import WHOLE, SamplingSettings, Start
from inpaint.serve.dialects.a1111_info import check_checkpoint, info, infotext, probes_router
from inpaint.serve.dialects.a1111_samplers import SAMPLER_OF, SAMPLERS, SCHEDULE_OF, SCHEDULES, read_sampler
from inpaint.serve.dialects.a1111_tasks import Task, Tasks, tasks_router
from inpaint.serve.dialects.adapters import adapted, choose
from inpaint.serve.dialects.painting import PaintCall, PaintEndpoint, TextFields, largest_size
from inpaint.serve.http.body import JSON
from inpaint.serve.http.endpoint import Picture
from inpaint.serve.http.errors import Dialect, Problem, bad, shown
from inpaint.serve.http.images import decode_photo, read_hole
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.http.receipt import Encoding
from inpaint.serve.http.resources import Record
from inpaint.serve.http.schema import LARGEST_SEED, Bounds, Fields, Upload, Within, Word, read_fields
from inpaint.serve.service import Painted, Service

_TAG = re.compile(r"\s*<(?:lora|lyco):([^<>]*)>", re.IGNORECASE)
_OTHER_SYNTAX = {
    "[a:b:0.5] (prompt editing)": re.compile(r"\[[^\[\]]*:\s*[\d.]+\s*\]"),
    "[a|b] (alternation)": re.compile(r"\[[^\[\]]*\|[^\[\]]*\]"),
    "AND (composition)": re.compile(r"\bAND\b"),
}
"""What prompts may hold there that is not read here."""
_STARTS = (Start.SURROUNDINGS, Start.ORIGINAL, Start.NOISE, Start.NOTHING)
"""By `inpainting_fill`."""
_PREVIEWS = 4
"""Of each picture of a request that will be followed; each costs its decoding."""
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "initial_noise_multiplier": (1,), "image_cfg_scale": (1.5,), "styles": ([],), "subseed": (-1,),
    "subseed_strength": (0,), "seed_resize_from_h": (0, -1), "seed_resize_from_w": (0, -1), "restore_faces": (False,),
    "tiling": (False,), "do_not_save_samples": (False, True), "do_not_save_grid": (False, True),
    "save_images": (False,), "override_settings_restore_afterwards": (True, False), "eta": (0, 1), "s_churn": (0,),
    "s_tmax": (0,), "s_tmin": (0,), "s_noise": (1,), "s_min_uncond": (0,), "script_args": ([],),
    "refiner_checkpoint": ("",), "disable_extra_networks": (False,),
}  # fmt: skip
"""Fields without effect here -> values that, beside null, have none in A1111 either; others are in `info.ignored`."""


def _error(problem: Problem, request_id: str) -> dict[str, Any]:
    return {"error": problem.code, "detail": str(problem), "body": "", "errors": str(problem)}


DIALECT = Dialect(name="a1111", prefix="/sdapi/", challenge='Basic realm="inpaint"', error=_error)


def _one(value: Any) -> Any:
    if not isinstance(value, list) or len(value) != 1:
        count = len(value) if isinstance(value, list) else 0
        raise PydanticCustomError("one_image", f"{count} pictures; send a list of one, in base64")
    return value[0]


def _served(value: str) -> str:
    if value.casefold() not in SAMPLER_OF:
        known = ", ".join(names[0] for names in SAMPLERS.values())
        raise PydanticCustomError("unknown_sampler", f"{shown(value)} is not served; give one of {known}")
    return value


def _scheduled(value: str) -> str:
    if value.casefold() not in SCHEDULE_OF:
        known = ", ".join(names[0] for names in SCHEDULES.values())
        raise PydanticCustomError("unknown_scheduler", f"{shown(value)} is not served; give one of {known}")
    return value


def _no_script(value: Any) -> Any:
    if value:
        name = next(iter(value)) if isinstance(value, dict) else value
        raise PydanticCustomError("no_such_script", f"{shown(name)}: no scripts or extensions are served here")
    return value


_SamplerName = Annotated[str, AfterValidator(_served)]
_Scripts = Annotated[Any, AfterValidator(_no_script)]
_EXAMPLE: JsonDict = {
    "init_images": ["iVBORw0..."],
    "mask": "iVBORw0...",
    "prompt": "a wooden table <lora:CDP_FOOD:0.8>",
    "denoising_strength": 1.0,
    "sampler_name": "Euler a",
    "steps": 25,
}


class Img2ImgFields(TextFields):
    """What `POST /sdapi/v1/img2img` takes and acts upon. `<lora:NAME:WEIGHT>` in the prompt uses an adapter."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"example": _EXAMPLE})

    init_images: Annotated[Upload, BeforeValidator(_one, json_schema_input_type=list[bytes])]
    """A list of one picture, base64 or `data:` URL."""
    mask: Upload | None = None
    """White is painted (of a mask with transparency: what is opaque); without it, what is transparent in the picture,
    or all of it."""
    inpainting_mask_invert: bool = False
    """Paint what the mask keeps."""
    seed: Annotated[int, Within(-1, LARGEST_SEED)] = -1
    """-1: random."""
    n_iter: Annotated[int, Within(1, "max_pictures")] = 1
    batch_size: Annotated[int, Within(1, "max_pictures")] = 1
    """n_iter x batch_size pictures, with consecutive seeds."""
    cfg_scale: Annotated[float, Within(0, 100)] | None = None
    denoising_strength: Annotated[float, Within(0, 1, above=True)] = 0.75
    sampler_name: _SamplerName | None = None
    sampler_index: _SamplerName | None = None
    """Read where there is no sampler_name."""
    scheduler: Annotated[str, AfterValidator(_scheduled)] | None = None
    """Karras, Exponential, SGM Uniform, Uniform; Automatic: Karras for DPM++ 2M, Exponential for DPM++ 2M SDE, else
    what the base says. One in the sampler's name ("DPM++ 2M Karras") comes first."""
    mask_blur: Annotated[float, Within(0, "max_feather")] = 4
    """A feather of so many pixels inside the hole: kept pixels stay as they are, where A1111 blurs across."""
    inpaint_full_res: bool = True
    """Paint the hole's surroundings, at about width x height; false: the picture is stretched to width x height."""
    inpaint_full_res_padding: Annotated[int, Within(0, "max_padding")] = 0
    width: Annotated[int, Within("size_multiple", "max_side")] | None = None
    height: Annotated[int, Within("size_multiple", "max_side")] | None = None
    resize_mode: Annotated[int, Within(0, 3)] = 0
    """Only 0 (stretch), where the aspect changes."""
    inpainting_fill: Annotated[int, Within(0, 3)] = 0
    """What the hole starts from: 0 its surroundings, blurred; 1 the original; 2 latent noise; 3 latent nothing."""
    force_task_id: Word = ""
    """Names the request, for `/progress` and `/interrupt`; it is then shown in more steps."""
    override_settings: dict[str, Any] | None = None
    """`sd_model_checkpoint` must be the base; others have no effect."""
    script_name: _Scripts = None
    """Refused, as are all extensions."""
    alwayson_scripts: _Scripts = None
    """Refused."""
    include_init_images: Any = None
    """Without effect."""
    send_images: bool = True

    @property
    def sides(self) -> tuple[int, int] | None:
        """Width and height, where both are given."""
        return (self.width, self.height) if self.width and self.height else None

    @property
    def side(self) -> int:
        """Of the square with the area at which is painted; 0 where the request does not say so."""
        return round((self.sides[0] * self.sides[1]) ** 0.5) if self.inpaint_full_res and self.sides else 0

    def sampling(self, largest: int) -> SamplingSettings:
        """As the painter has them. Args: largest: working size that is still served; beyond, the base's own."""
        sampler, schedule = read_sampler(self.sampler_name or self.sampler_index or "Euler", self.scheduler or "")
        return SamplingSettings(
            sampler=sampler,
            schedule=schedule,
            prompt_weights=True,
            prompt_chunks=self.prompt_chunks,
            steps=self.steps,
            strength=self.denoising_strength,
            start=_STARTS[self.inpainting_fill],
            guidance_scale=self.cfg_scale,
            size=self.side if 0 < self.side <= largest else None,
            padding=self.inpaint_full_res_padding if self.inpaint_full_res else WHOLE,
            feather=round(self.mask_blur),
        )


class LoraTag(Fields):
    """What `<lora:NAME:WEIGHT>` says, told as the prompt's fault."""

    prompt: Annotated[float, Within("-max_weight", "max_weight")] = 1.0


class Img2ImgEndpoint(PaintEndpoint[Img2ImgFields]):
    """A1111's inpainting

    White is painted; `<lora:NAME:WEIGHT>` in the prompt uses an adapter.
    """

    path = "/sdapi/v1/img2img"
    dialect = DIALECT
    fields = Img2ImgFields
    media_types = (JSON,)
    answers = ("application/json",)
    n_field = "batch_size"

    def __init__(self, settings: HttpSettings, service: Service) -> None:
        super().__init__(settings, service)
        self.tasks = Tasks()

    def read(self, fields: Img2ImgFields) -> PaintCall[Img2ImgFields]:
        """Names first, then pictures."""
        settings, base = self.settings, self.base
        check_checkpoint(fields.override_settings or {}, "override_settings.sd_model_checkpoint", base)
        prompt, tags = _without_tags(fields.prompt, self.limits)
        catalogue = self.service.catalogue()
        chosen = [choose(name, catalogue, "prompt", weight=weight) for name, weight in tags]
        prompt, adapters = adapted(prompt, chosen, "prompt", settings.max_adapters)
        n = fields.n_iter * fields.batch_size
        if n > settings.max_pictures:
            message = f"n_iter x batch_size is {n}, the limit is {settings.max_pictures}"
            raise bad("batch_size", message, "out_of_range")
        photo = decode_photo(fields.init_images, "init_images", settings, base.size_multiple)
        hole = self._hole(fields, photo)
        shape = self._shape(fields, hole.shape)
        call = self.call(
            fields,
            prompt=prompt,
            adapters=adapters,
            photo=photo.resized(shape),
            hole=resize_hole(hole, shape),
            sampling=fields.sampling(largest_size(base)),
            seed=None if fields.seed < 0 else fields.seed,
            n=n,
            encoding=Encoding(compress_level=settings.png_compress_level),
            warnings=_ignored(fields, prompt, base),
        )
        return replace(call, previews=_PREVIEWS) if fields.force_task_id else call

    def _hole(self, fields: Img2ImgFields, photo: Photo) -> np.ndarray:
        if fields.mask is not None:
            white = read_hole(fields.mask, photo, self.settings, "opaque")
            return ~white if fields.inpainting_mask_invert else white
        if photo.transparent is not None and photo.transparent.any():
            return photo.transparent
        return np.ones(photo.image.shape[:2], dtype=bool)

    def _shape(self, fields: Img2ImgFields, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of the answer."""
        old_height, old_width = shape
        if fields.inpaint_full_res or fields.sides is None:
            return old_height, old_width
        width, height = fields.sides
        same_aspect = abs(width * old_height - height * old_width) <= max(old_height, old_width)
        if fields.resize_mode != 0 and not same_aspect:
            message = f"{fields.resize_mode}; only 0 (stretch) is served where the aspect changes: use inpaint_full_res"
            raise bad("resize_mode", message)
        pixels, aspect = self.settings.max_pixels, self.settings.max_aspect
        if width * height > pixels or max(width, height) > aspect * min(width, height):
            message = f"{width} x {height}; the limits are {pixels:,} pixels and an aspect of {aspect:g}"
            raise bad("width", message, "out_of_range")
        return height, width

    async def submit(self, call: PaintCall[Img2ImgFields], record: Record) -> AsyncGenerator[Picture, None]:
        """The pictures when all are done, or those that are when the client stops it."""
        done: list[Picture] = []
        stop = asyncio.timeout(None)
        name = call.fields.force_task_id or record.id
        with self.tasks.running(Task(id=name, key=record.key, call=call, stop=stop)) as task:
            try:
                # No picture leaves from inside: what is done with it would be stopped, too.
                async with stop, aclosing(super().submit(call, record)) as pictures:
                    async for picture in pictures:
                        task.show(picture)
                        if isinstance(picture.about, Painted):
                            done.append(picture)
            except TimeoutError:
                if not stop.expired():
                    raise
        for picture in done:
            yield picture

    def add_to(self, app: FastAPI) -> None:
        """And what clients ask before and beside painting."""
        super().add_to(app)
        app.include_router(probes_router(self.service))
        app.include_router(tasks_router(self.tasks))

    def infotext(self, call: PaintCall[Img2ImgFields], seed: int) -> str:
        return infotext(call, seed)

    def answer(self, call: PaintCall[Img2ImgFields], pictures: Sequence[Picture]) -> Response:
        """All pictures in base64, and what A1111 says of them."""
        fields = call.fields
        parameters = fields.model_dump(exclude={"init_images", "mask"}, exclude_unset=True)
        told = {
            "images": [one.base64 for one in pictures] if fields.send_images else [],
            "parameters": {**parameters, "init_images": None, "mask": None},
            "info": json.dumps({**info(call, [one.number for one in pictures]), "batch_size": fields.batch_size}),
        }
        return JSONResponse(told)


def _without_tags(prompt: str, limits: Bounds) -> tuple[str, list[tuple[str, float]]]:
    """The prompt without its LoRA tags, and what they said."""
    tags = []
    for match in _TAG.finditer(prompt):
        name, *weights = (part.strip() for part in match[1].split(":"))
        if not name or len(weights) > 1:
            raise bad("prompt", f"{shown(match[0].strip())}; write <lora:NAME:WEIGHT> or <lora:NAME>", "broken_tag")
        tags.append((name, read_fields(LoraTag, {"prompt": "".join(weights)}, limits).prompt))
    return _TAG.sub("", prompt).strip(" \n,") if tags else prompt, tags


def _ignored(fields: Img2ImgFields, prompt: str, base: BaseInfo) -> list[str]:
    """What was given and has no effect."""
    options = (fields.override_settings or {}).keys() - {"sd_model_checkpoint"}
    given = {name: value for name, value in (fields.model_extra or {}).items() if value is not None}
    extra = [name for name, value in given.items() if value not in _HARMLESS.get(name, ())]
    names = [*(f"override_settings.{name}" for name in sorted(options)), *sorted(extra)]
    strange = [ascii(name)[1:-1][:60] for name in names]
    for name, form in _OTHER_SYNTAX.items():
        if form.search(prompt) or form.search(fields.negative_prompt):
            strange.append(f"{name} in a prompt: read as text")
    named = SAMPLER_OF[(fields.sampler_name or fields.sampler_index or "Euler").casefold()][1]
    if named is not None and SCHEDULE_OF[(fields.scheduler or "").casefold()] not in (None, named):
        strange.append(f"scheduler: the sampler's name says {SCHEDULES[named][0]}")
    if fields.side > largest_size(base):
        strange.append(f"width, height: far from what the base was trained at, painted at {base.default_size}")
    if fields.resize_mode and fields.inpaint_full_res:
        strange.append("resize_mode")
    return strange
