"""Enhancing products: what was found in a photo is repainted with a ControlNet, and nothing else.

Guaranteed: outside the product's mask a picture has its photo's own numbers; a photo in which nothing was found comes
back as its file's own bytes, and nothing is painted for it.
"""

import hashlib
import string
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated

import numpy as np
import tyro

from inpaint.data.rows import Row
from inpaint.errors import BadRow, InpaintError
from inpaint.models.base import BaseInfo
from inpaint.models.controlnet import load_controlnet
from inpaint.models.locate import locate_controlnet
from inpaint.paint.batch import PaintModels, PaintSettings, Worker, painted_result, read_models, row_seed
from inpaint.paint.crop import seen
from inpaint.paint.painter import Painter
from inpaint.paint.photos import Photo, decode_hole, read_original, read_row
from inpaint.paint.request import Control, PaintRequest
from inpaint.rowmap import ActorResources, Item, Result
from inpaint.vision.control import ControlKind, ControlPictures, ControlSettings, load_control

ENHANCED = "enhanced.jsonl"
"""Done-list of the output: id, skipped, reason, products, output, and of a picture what `painted.jsonl` says."""
SUITED = {
    (False, ControlKind.DEPTH): "lllyasviel/control_v11f1p_sd15_depth",
    (False, ControlKind.EDGES): "lllyasviel/control_v11p_sd15_canny",
    (True, ControlKind.DEPTH): "diffusers/controlnet-depth-sdxl-1.0",
    (True, ControlKind.EDGES): "diffusers/controlnet-canny-sdxl-1.0",
}
"""(whether it is SDXL, what it is shown) -> the ControlNet of a base that is not said to have another."""
_PROMPT_FIELDS = ("product", "caption")


@dataclass(frozen=True, kw_only=True)
class EnhanceSettings:
    """How found products are repainted."""

    enhance_prompt: str | None = None
    """Of every product, with `{product}` for what was found and `{caption}` for the photo's own prompt; unset:
    `{product}`, or the photo's prompt where its own mask says what is painted."""
    enhance_category: str | None = None
    """Of every product: one that the adapter knows; unset: the row's own."""
    controlnet: str | None = None
    """A ControlNet's folder or hub id, or `toy-edges`; unset: a well-known one that suits the base."""
    controlnet_revision: str | None = None
    """Of a hub id: branch, tag or commit."""
    conditioning_scale: float = 1.0
    """Weight of what the ControlNet adds; 0: nothing."""
    pictures: Annotated[ControlSettings, tyro.conf.arg(name="")] = ControlSettings()
    paint: Annotated[PaintSettings, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = PaintSettings()

    def __post_init__(self) -> None:
        if self.paint.panels:
            raise InpaintError("panels: products are enhanced where they are found; leave the panels out")
        try:
            used = {name for _, name, _, _ in string.Formatter().parse(self.enhance_prompt or "") if name is not None}
        except ValueError as error:
            raise InpaintError(f"enhance_prompt {self.enhance_prompt!r}: {error}") from error
        if not used <= set(_PROMPT_FIELDS):
            known = " and ".join(f"{{{name}}}" for name in _PROMPT_FIELDS)
            raise InpaintError(f"enhance_prompt {self.enhance_prompt!r} uses {sorted(used)}; known are {known}")

    def prompt(self, products: Sequence[str], caption: str) -> str:
        """Of a photo in which these products were found; of none: its own mask says what is painted."""
        format = self.enhance_prompt or ("{product}" if products else "{caption}")
        return format.format(product=" and ".join(products) or caption, caption=caption)

    def named_controlnet(self, info: BaseInfo) -> str:
        """The one that is given, or the one that suits the base."""
        if self.controlnet is not None:
            return self.controlnet
        if info.default_size < 256:
            return "toy-edges"
        return SUITED[info.is_xl, self.pictures.control]


@dataclass(frozen=True)
class EnhanceModels(PaintModels):
    """What settings name, found and checked, without weights. Travels to where it is painted."""

    enhance: EnhanceSettings
    """With nothing left open."""

    @property
    def revisions(self) -> Mapping[str, str]:
        """What else a picture depends on."""
        return {"controlnet": str(self.enhance.controlnet_revision), **self.enhance.pictures.revisions()}

    def painter(self, device: str, max_batch: int) -> Painter:
        """With its ControlNet."""
        base, enhance = self.load(device), self.enhance
        assert enhance.controlnet is not None
        net = load_controlnet(enhance.controlnet, base, enhance.controlnet_revision)
        return Painter(base, controlnet=net, max_batch=max_batch)


def read_enhance_models(settings: EnhanceSettings) -> EnhanceModels:
    """Find what the settings name. Raises InpaintError, as `read_models`, for a ControlNet or a depth model that is not
    there, and for a prompt that calls another adapter."""
    models = read_models(settings.paint)
    controlnet = settings.named_controlnet(models.info)
    _, _, revision = locate_controlnet(controlnet, settings.controlnet_revision)
    decided = replace(settings, controlnet=controlnet, controlnet_revision=revision, paint=models.settings)
    models.split(settings.enhance_prompt or "")
    return EnhanceModels(models.settings, models.adapter, models.info, decided)


@dataclass(frozen=True, kw_only=True)
class EnhanceTask:
    """One photo; plain values, for it travels."""

    row: Row
    prompt: str
    """With the category's token in it."""
    output: str
    """Path of the picture below the output folder; of a photo that is skipped, with its own suffix."""
    products: tuple[str, ...] = ()
    mask: bytes | None = None
    """A PNG, white where something was found; None: the row's own mask."""
    skipped: str = ""
    """Why nothing is painted; empty: it is."""


def plan_enhancement(
    models: EnhanceModels,
    row: Row,
    output: str,
    *,
    products: Sequence[str] = (),
    mask: bytes | None = None,
    skipped: str = "",
) -> Item:
    """What is to be done with a row. Raises InpaintError for a category that the adapter does not know."""
    enhance = models.enhance
    prompt = ""
    if not skipped:
        prompt = models.prompt(enhance.prompt(products, row.prompt), enhance.enhance_category or row.category)
    found = "" if mask is None else hashlib.sha256(mask).hexdigest()
    key = models.key(
        row.id,
        row.digest,
        prompt,
        found,
        skipped,
        str(enhance.conditioning_scale),
        str(sorted(models.revisions.items())),
    )
    task = EnhanceTask(row=row, prompt=prompt, output=output, products=tuple(products), mask=mask, skipped=skipped)
    return Item(row.id, key, task)


class EnhanceWorker(Worker):
    """Enhances batches of photos; each batch is read and encoded by threads around one painting."""

    def __init__(self, models: EnhanceModels, max_batch: int, resources: ActorResources) -> None:
        super().__init__(models, max_batch, resources)
        self.enhance = models.enhance
        self.pictures = load_control(models.enhance.pictures, resources.device)

    def __call__(self, tasks: Sequence[EnhanceTask]) -> list[Result | BadRow]:
        started = time.monotonic()
        read = list(self.threads.map(self._request, tasks))
        good = [(task, *one) for task, one in zip(tasks, read, strict=True) if isinstance(one, tuple)]
        scale = self.enhance.conditioning_scale
        requests = controlled(self.models.info, [request for _, _, request in good], self.pictures, scale)
        pictures = self.painter.paint(requests) if requests else []
        seconds = round((time.monotonic() - started) / len(tasks), 3)
        results = iter(self.threads.map(partial(_result, seconds), good, pictures))
        return [next(results) if isinstance(outcome, tuple) else outcome for outcome in read]

    def _request(self, task: EnhanceTask) -> tuple[Photo, PaintRequest] | Result | BadRow:
        seed = self.models.settings.seed
        try:
            if task.mask is None and not task.skipped:
                photo, hole = read_row(task.row, seed)
            else:
                data, photo = read_original(task.row)
                if task.mask is None:
                    return _skipped(task, data)
                hole = decode_hole(task.mask, photo)
        except BadRow as error:
            return error
        return photo, self.models.request(photo.image, hole, task.prompt, row_seed(seed, task.row.id))


def controlled(
    info: BaseInfo, requests: Sequence[PaintRequest], pictures: ControlPictures, scale: float
) -> list[PaintRequest]:
    """The requests, each with the control picture of what the painter sees of its photo."""
    made = pictures([seen(info, request) for request in requests])
    return [
        replace(request, control=Control(image=picture, scale=scale, of_seen=True))
        for request, picture in zip(requests, made, strict=True)
    ]


def _skipped(task: EnhanceTask, data: bytes) -> Result:
    """The photo as it came."""
    name = str(PurePosixPath(task.output).with_suffix(PurePosixPath(task.row.input or task.row.image).suffix))
    return Result(files={name: data}, line={"skipped": True, "reason": task.skipped, "products": [], "output": name})


def _result(seconds: float, painted: tuple[EnhanceTask, Photo, PaintRequest], picture: np.ndarray) -> Result:
    task, photo, request = painted
    made = painted_result(task.output, photo, request, picture, seconds)
    return replace(made, line={"skipped": False, "reason": None, "products": list(task.products), **made.line})
