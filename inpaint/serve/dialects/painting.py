"""What the painting dialects share: fields, a call and its orders, and the way to the service and back."""

import dataclasses
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
from PIL import Image

from inpaint.diffusion.noise_levels import StepSchedule
from inpaint.diffusion.samplers import Sampler
from inpaint.models.base import BaseInfo
from inpaint.models.prompt_text import AS_WRITTEN, MOST_CHUNKS
from inpaint.paint.photos import Photo
from inpaint.paint.request import PaintRequest, SamplingSettings, Start
from inpaint.serve.http.endpoint import Call, Endpoint, Picture
from inpaint.serve.http.errors import bad
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.http.receipt import Encoding, Receipt
from inpaint.serve.http.resources import Record
from inpaint.serve.http.schema import LARGEST_SEED, Fields, HoleFields, PictureFields, PromptText, Within
from inpaint.serve.service import AdapterUse, Painted, PaintOrder, Service

_NOTHING_DONE: dict[str, Any] = dict.fromkeys(("kept_pixels_changed", "steps", "batch_rows", "queue_s", "paint_s"), 0)
_SAMPLING = {field.name for field in dataclasses.fields(SamplingSettings)} - {"size"}


class TextFields(Fields):
    """What every dialect calls the same."""

    prompt: PromptText = ""
    """What to paint; the category's token is written into it."""
    negative_prompt: PromptText = ""
    """What to steer away from; needs guidance above 1."""
    prompt_chunks: Annotated[int, Within(1, MOST_CHUNKS)] = AS_WRITTEN.prompt_chunks
    """Prompts may have so many times 75 tokens; what goes beyond is cut, which `x-warnings` says."""
    steps: Annotated[int, Within(1, "max_steps")] | None = None
    """Denoising steps at strength 1; default: the base's."""
    timeout_s: Annotated[float, Within(0, "max_timeout_s", above=True)] | None = None
    """Give up after so many seconds: 408."""


class SamplingFields(TextFields, PictureFields):
    """How noise becomes pictures, under the names that our own dialect and OpenAI's `extra_body` use."""

    n: Annotated[int, Within(1, "max_pictures")] = 1
    """Pictures, with seeds seed, seed + 1, ..."""
    prompt_weights: bool = False
    """Read (word:1.2), [word] and BREAK in prompts as A1111 does; else they are literal text."""
    guidance_scale: Annotated[float, Within(0, 100)] | None = None
    """Up to 1 there is none; default: the base's."""
    sampler: Sampler = Sampler.DDIM
    """How noise becomes a picture."""
    schedule: StepSchedule | None = None
    """Which noise levels the steps visit; default: the base's."""
    stream: bool = False
    """Server-sent events: pictures on the way, then each that is done."""

    def sampling(self, size: int | None = None) -> SamplingSettings:
        """As the painter has them."""
        return SamplingSettings(**self.model_dump(include=_SAMPLING & type(self).model_fields.keys()), size=size)


class PaintFields(SamplingFields, HoleFields):
    """The same where a photo's hole is painted."""

    strength: Annotated[float, Within(0, 1, above=True)] = 1.0
    """1 forgets what was in the hole, less keeps its layout."""
    start: Start = Start.ORIGINAL
    """What the hole starts from beside noise, below strength 1."""
    padding: Annotated[int | Literal["whole"], Within(0, "max_padding")] | None = None
    """Pixels of the photo seen around the hole; `whole`: all of it. Default: of a photo larger than it is painted, the
    hole and a quarter of its longer side."""


FieldsT = TypeVar("FieldsT", bound=TextFields)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PaintCall(Call[PaintRequest], Generic[FieldsT]):
    """A checked request for `n` pictures with the seeds seed, seed + 1, ...; `request` is the first one's."""

    fields: FieldsT
    previews: int


class PaintEndpoint(Endpoint[FieldsT, PaintCall[FieldsT]]):
    """A path on which pictures are asked for: its dialect says what its fields mean, and writes the answer.

    Pictures are `about` the `Painted` or `Preview` that came.
    """

    def __init__(self, settings: HttpSettings, service: Service) -> None:
        self.service, self.base = service, service.base
        super().__init__(settings, size_multiple=self.base.size_multiple, largest_size=largest_size(self.base))

    def call(
        self,
        fields: FieldsT,
        *,
        prompt: str,
        adapters: tuple[AdapterUse, ...],
        photo: Photo | None,
        hole: np.ndarray,
        sampling: SamplingSettings,
        seed: int | None,
        n: int,
        encoding: Encoding,
        previews: int | None = None,
        model: str = "",
        warnings: Sequence[str] = (),
    ) -> PaintCall[FieldsT]:
        """The call, and what all dialects check.

        Args:
            photo: None: a picture from text alone, of the hole's shape (`whole`).
            previews: per picture, of a stream; None: no stream.
        """
        base, last_seed = self.base, LARGEST_SEED - n + 1
        if seed is None:
            seed = secrets.randbelow(2**32)  # every client's numbers can hold it
        if seed > last_seed:
            raise bad("seed", f"{seed}; give 0 to {last_seed} for {n} pictures", "out_of_range")
        sampling = sampling.resolved(base)
        negative, told = fields.negative_prompt, dataclasses.asdict(sampling)
        return PaintCall(
            request=PaintRequest(
                image=np.zeros((*hole.shape, 3), dtype=np.uint8) if photo is None else photo.image,
                hole=hole,
                prompt=prompt,
                negative_prompt=negative,
                seed=seed,
                sampling=sampling,
                text_alone=photo is None,
            ),
            receipt=Receipt(base=base.name, base_revision=base.revision, adapters=adapters, seed=seed, sampling=told),
            encoding=encoding,
            finish=Image.fromarray if photo is None else partial(photo.painted, hole=hole),
            model=model or "+".join(use.name for use in adapters),
            n=n,
            pixels=hole.size,
            stream=previews is not None,
            warnings=tuple(warnings),
            fields=fields,
            previews=previews or 0,
        )

    def whole(self, width: int, height: int, field: str, most: int) -> np.ndarray:
        """The hole of a picture from text alone, of `most` pixels. Raises Problem for sides that cannot be."""
        least, aspect = self.base.size_multiple, self.settings.max_aspect
        if min(width, height) < least or width * height > most or max(width, height) > aspect * min(width, height):
            raise bad(
                field,
                f"{width} x {height}; sides may have at least {least} pixels and differ by a factor of {aspect:g}, and "
                f"the picture {most:,} pixels",
                "out_of_range",
            )
        return np.ones((height, width), dtype=bool)

    async def submit(self, call: PaintCall[FieldsT], record: Record) -> AsyncGenerator[Picture, None]:
        """Previews and pictures as they come; each number ends with its picture. Without a hole it is the photo."""
        request = call.request
        if not request.hole.any():
            for number in range(call.n):
                yield Picture(number=number, image=request.image, about=Painted(image=request.image, **_NOTHING_DONE))
            return
        name = f"{record.id}-{secrets.token_hex(4)}"  # clients may give an id twice
        orders = [
            PaintOrder(
                id=name if call.n == 1 else f"{name}-{number}",
                request=dataclasses.replace(request, seed=request.seed + number),
                adapters=call.receipt.adapters,
                previews=call.previews,
                timeout_s=call.fields.timeout_s or self.settings.timeout_s,
                key=record.key,
            )
            for number in range(call.n)
        ]
        unpainted = set(range(call.n))
        async with aclosing(self.service.paint(orders)) as events:
            async for number, event in events:
                if isinstance(event, Painted):
                    unpainted.remove(number)
                    changed, shape, asked = event.kept_pixels_changed, event.image.shape, request.image.shape
                    if changed or shape != asked:  # none goes out, also under `python -O`
                        raise AssertionError(f"{name}: {changed} kept pixels were changed; {shape}, asked {asked}")
                    record.steps += event.steps
                    record.queue_s = max(record.queue_s, event.queue_s)
                    record.paint_s = max(record.paint_s, event.paint_s)
                warnings = _cut(event) if isinstance(event, Painted) else ()
                yield Picture(number=number, image=event.image, about=event, warnings=warnings)
        assert not unpainted, f"the service ended without pictures {sorted(unpainted)} of {name}"


def _cut(painted: Painted) -> tuple[str, ...]:
    if not painted.tokens_cut:
        return ()
    return (f"prompts are too long: their last {painted.tokens_cut} tokens have no effect",)


def largest_size(base: BaseInfo) -> int:
    """Of a working size: four times the pixels that the base was trained at."""
    return 2 * base.default_size
