"""AUTOMATIC1111's `POST /sdapi/v1/img2img` and `/txt2img`, as its clients send them; the fields say what each does
here.

Extensions are refused; other fields that have no effect are named in `info.ignored`. `/progress` and `/interrupt`
are about the client's own requests (`a1111_tasks`); what an interrupted request has finished is its answer. Sources:
the public API schema of A1111 and Forge, and what the client `webuiapi` sends.
"""

import asyncio
import json
import math
import re
from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any, TypeVar

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
from inpaint.serve.dialects.adapters import adapted
from inpaint.serve.dialects.painting import PaintCall, PaintEndpoint, TextFields, largest_size
from inpaint.serve.http.body import JSON
from inpaint.serve.http.endpoint import Picture
from inpaint.serve.http.errors import Dialect, Problem, bad, shown
from inpaint.serve.http.images import decode_photo, read_hole
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.http.receipt import Encoding
from inpaint.serve.http.resources import Record
from inpaint.serve.http.schema import LARGEST_SEED, Upload, Within, Word, file_fields
from inpaint.serve.service import Painted, Service

_OTHER_SYNTAX = {
    "[a:b:0.5] (prompt editing)": re.compile(r"\[[^\[\]]*:\s*[\d.]+\s*\]"),
    "[a|b] (alternation)": re.compile(r"\[[^\[\]]*\|[^\[\]]*\]"),
    "AND (composition)": re.compile(r"\bAND\b"),
}
"""What prompts may hold there that is not read here."""
_STARTS = (Start.SURROUNDINGS, Start.ORIGINAL, Start.NOISE, Start.NOTHING)
"""By `inpainting_fill`."""
_CHECKPOINT = "sd_model_checkpoint"
_HIRES = {
    "denoising_strength", "firstphase_width", "firstphase_height", "hr_scale", "hr_upscaler", "hr_second_pass_steps",
    "hr_resize_x", "hr_resize_y", "hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt",
    "hr_negative_prompt", "hr_additional_modules", "hr_cfg", "hr_distilled_cfg",
}  # fmt: skip
"""Fields of txt2img's second pass: without `enable_hr` they have no effect in A1111 either."""
_FAR = "width, height: far from what the base was trained at, painted at {}"
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


class A1111Fields(TextFields):
    """What both paths take and act upon. `<lora:NAME:WEIGHT>` in the prompt uses an adapter."""

    model_config = ConfigDict(extra="allow")

    seed: Annotated[int, Within(-1, LARGEST_SEED)] = -1
    """-1: random."""
    n_iter: Annotated[int, Within(1, "max_pictures")] = 1
    batch_size: Annotated[int, Within(1, "max_pictures")] = 1
    """n_iter x batch_size pictures, with consecutive seeds."""
    cfg_scale: Annotated[float, Within(0, 100)] | None = None
    sampler_name: _SamplerName | None = None
    sampler_index: _SamplerName | None = None
    """Read where there is no sampler_name."""
    scheduler: Annotated[str, AfterValidator(_scheduled)] | None = None
    """Karras, Exponential, SGM Uniform, Uniform; Automatic: Karras for DPM++ 2M, Exponential for DPM++ 2M SDE, else
    what the base says. One in the sampler's name ("DPM++ 2M Karras") comes first."""
    width: Annotated[int, Within("size_multiple", "max_side")] | None = None
    height: Annotated[int, Within("size_multiple", "max_side")] | None = None
    force_task_id: Word = ""
    """Names the request, for `/progress` and `/interrupt`; it is then shown in more steps."""
    override_settings: dict[str, Any] | None = None
    """`sd_model_checkpoint` must be the base; others have no effect."""
    script_name: _Scripts = None
    """Refused, as are all extensions."""
    alwayson_scripts: _Scripts = None
    """Refused."""
    send_images: bool = True

    @property
    def sampler(self) -> str:
        """As the client names it."""
        return self.sampler_name or self.sampler_index or "Euler"

    def sampling(self, base: BaseInfo) -> SamplingSettings:
        """As the painter has them."""
        sampler, schedule = read_sampler(self.sampler, self.scheduler or "")
        return SamplingSettings(
            sampler=sampler,
            schedule=schedule,
            prompt_weights=True,
            prompt_chunks=self.prompt_chunks,
            steps=self.steps,
            guidance_scale=self.cfg_scale,
        )

    def ignored(self, base: BaseInfo) -> Iterator[str]:
        """What was given and has no effect."""
        yield from (f"override_settings.{one}" for one in sorted((self.override_settings or {}).keys() - {_CHECKPOINT}))
        given = {name: value for name, value in (self.model_extra or {}).items() if value is not None}
        yield from sorted(name for name, value in given.items() if value not in _HARMLESS.get(name, ()))
        named = SAMPLER_OF[self.sampler.casefold()][1]
        if named is not None and SCHEDULE_OF[(self.scheduler or "").casefold()] not in (None, named):
            yield f"scheduler: the sampler's name says {SCHEDULES[named][0]}"


class Img2ImgFields(A1111Fields):
    """What `POST /sdapi/v1/img2img` takes and acts upon."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    init_images: Annotated[Upload, BeforeValidator(_one, json_schema_input_type=list[bytes])]
    """A list of one picture, base64 or `data:` URL."""
    mask: Upload | None = None
    """White is painted (of a mask with transparency: what is opaque); without it, what is transparent in the picture,
    or all of it."""
    inpainting_mask_invert: bool = False
    """Paint what the mask keeps."""
    denoising_strength: Annotated[float, Within(0, 1, above=True)] = 0.75
    mask_blur: Annotated[float, Within(0, "max_feather")] = 4
    """A feather of so many pixels inside the hole: kept pixels stay as they are, where A1111 blurs across."""
    inpaint_full_res: bool = True
    """Paint the hole's surroundings, at about width x height; false: the picture is stretched to width x height."""
    inpaint_full_res_padding: Annotated[int, Within(0, "max_padding")] = 0
    resize_mode: Annotated[int, Within(0, 3)] = 0
    """Only 0 (stretch), where the aspect changes."""
    inpainting_fill: Annotated[int, Within(0, 3)] = 0
    """What the hole starts from: 0 its surroundings, blurred; 1 the original; 2 latent noise; 3 latent nothing."""
    include_init_images: Any = None
    """Without effect."""

    @property
    def sides(self) -> tuple[int, int] | None:
        """Width and height, where both are given."""
        return (self.width, self.height) if self.width and self.height else None

    @property
    def side(self) -> int:
        """Of the square with the area at which is painted; 0 where the request does not say so."""
        return round((self.sides[0] * self.sides[1]) ** 0.5) if self.inpaint_full_res and self.sides else 0

    def sampling(self, base: BaseInfo) -> SamplingSettings:
        """As the painter has them; at a working size that is not served any more, the base's own."""
        return replace(
            super().sampling(base),
            strength=self.denoising_strength,
            start=_STARTS[self.inpainting_fill],
            size=self.side if 0 < self.side <= largest_size(base) else None,
            padding=self.inpaint_full_res_padding if self.inpaint_full_res else WHOLE,
            feather=round(self.mask_blur),
        )

    def ignored(self, base: BaseInfo) -> Iterator[str]:
        yield from super().ignored(base)
        if self.side > largest_size(base):
            yield _FAR.format(base.default_size)
        if self.resize_mode and self.inpaint_full_res:
            yield "resize_mode"


class Txt2ImgFields(A1111Fields):
    """What `POST /sdapi/v1/txt2img` takes and acts upon: a picture of width x height, by default what the base was
    trained at."""

    enable_hr: bool = False
    """Without effect, as all of "hires. fix"."""

    def sides(self, base: BaseInfo) -> tuple[int, int]:
        """Width and height."""
        return self.width or base.default_size, self.height or base.default_size

    def sampling(self, base: BaseInfo) -> SamplingSettings:
        """As the painter has them; at a size that is not served any more, the base's own."""
        return replace(super().sampling(base), size=base.default_size if self._is_far(base) else None)

    def _is_far(self, base: BaseInfo) -> bool:
        return math.prod(self.sides(base)) > largest_size(base) ** 2

    def ignored(self, base: BaseInfo) -> Iterator[str]:
        yield from (one for one in super().ignored(base) if one not in _HIRES)
        if self._is_far(base):
            yield _FAR.format(base.default_size)
        if self.enable_hr:
            yield "enable_hr"


A1111FieldsT = TypeVar("A1111FieldsT", bound=A1111Fields)


class A1111Endpoint(PaintEndpoint[A1111FieldsT]):
    """What both paths do alike."""

    dialect = DIALECT
    media_types = (JSON,)
    answers = ("application/json",)
    n_field = "batch_size"

    def __init__(self, settings: HttpSettings, service: Service, tasks: Tasks) -> None:
        """Args: tasks: of all paths together."""
        super().__init__(settings, service)
        self.tasks = tasks

    @abstractmethod
    def canvas(self, fields: A1111FieldsT) -> tuple[Photo | None, np.ndarray]:
        """The photo and its hole, or the hole alone. Raises InpaintError."""

    def read(self, fields: A1111FieldsT) -> PaintCall[A1111FieldsT]:
        """Names first, then pictures."""
        settings, base = self.settings, self.base
        check_checkpoint(fields.override_settings or {}, f"override_settings.{_CHECKPOINT}", base)
        catalogue = self.service.catalogue()
        prompt, adapters = adapted(fields.prompt, [], "prompt", catalogue, self.limits)
        n = fields.n_iter * fields.batch_size
        if n > settings.max_pictures:
            message = f"n_iter x batch_size is {n}, the limit is {settings.max_pictures}"
            raise bad("batch_size", message, "out_of_range")
        photo, hole = self.canvas(fields)
        call = self.call(
            fields,
            prompt=prompt,
            adapters=adapters,
            photo=photo,
            hole=hole,
            sampling=fields.sampling(base),
            seed=None if fields.seed < 0 else fields.seed,
            n=n,
            encoding=Encoding(compress_level=settings.png_compress_level),
            warnings=[*_printable(fields.ignored(base)), *_other_syntax(prompt, fields.negative_prompt)],
        )
        return replace(call, previews=_PREVIEWS) if fields.force_task_id else call

    async def submit(self, call: PaintCall[A1111FieldsT], record: Record) -> AsyncGenerator[Picture, None]:
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

    def infotext(self, call: PaintCall[A1111FieldsT], seed: int) -> str:
        return infotext(call, seed)

    def answer(self, call: PaintCall[A1111FieldsT], pictures: Sequence[Picture]) -> Response:
        """All pictures in base64, and what A1111 says of them."""
        fields = call.fields
        files = file_fields(type(fields))
        parameters = fields.model_dump(exclude=set(files), exclude_unset=True)
        told = {
            "images": [one.base64 for one in pictures] if fields.send_images else [],
            "parameters": {**parameters, **dict.fromkeys(files)},
            "info": json.dumps({**info(call, [one.number for one in pictures]), "batch_size": fields.batch_size}),
        }
        return JSONResponse(told)


class Txt2ImgEndpoint(A1111Endpoint[Txt2ImgFields]):
    """A1111's pictures from text

    `<lora:NAME:WEIGHT>` in the prompt uses an adapter.
    """

    path = "/sdapi/v1/txt2img"
    fields = Txt2ImgFields

    def canvas(self, fields: Txt2ImgFields) -> tuple[None, np.ndarray]:
        """All of it is hole."""
        return None, self.whole(*fields.sides(self.base), "width", self.settings.max_pixels)


class Img2ImgEndpoint(A1111Endpoint[Img2ImgFields]):
    """A1111's inpainting

    White is painted; `<lora:NAME:WEIGHT>` in the prompt uses an adapter.
    """

    path = "/sdapi/v1/img2img"
    fields = Img2ImgFields

    def canvas(self, fields: Img2ImgFields) -> tuple[Photo, np.ndarray]:
        """At the size asked for."""
        photo = decode_photo(fields.init_images, "init_images", self.settings, self.base.size_multiple)
        hole = self._hole(fields, photo)
        shape = self._shape(fields, hole.shape)
        return photo.resized(shape), resize_hole(hole, shape)

    def add_to(self, app: FastAPI) -> None:
        """And what clients ask before and beside painting."""
        super().add_to(app)
        app.include_router(probes_router(self.service))
        app.include_router(tasks_router(self.tasks))

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


def _printable(names: Iterable[str]) -> list[str]:
    return [ascii(name)[1:-1][:80] for name in names]


def _other_syntax(*prompts: str) -> list[str]:
    """What prompts hold that is not read here."""
    found = [name for name, form in _OTHER_SYNTAX.items() if any(form.search(prompt) for prompt in prompts)]
    return [f"{name} in a prompt: read as text" for name in found]
