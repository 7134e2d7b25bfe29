"""What the painting dialects share: fields, a call and its orders, and the way to the service and back."""

import dataclasses
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Generic, TypeVar

import numpy as np

from inpaint.diffusion.samplers import Sampler
from inpaint.models.base import BaseInfo
from inpaint.paint.request import PaintRequest, SamplingSettings
from inpaint.serve.dialects.adapters import ChosenAdapter, different
from inpaint.serve.http.endpoint import Call, Encoded, Endpoint
from inpaint.serve.http.errors import bad
from inpaint.serve.http.images import Photo, check_area
from inpaint.serve.http.receipt import Encoding, Receipt, encode
from inpaint.serve.http.record import Record
from inpaint.serve.http.resources import Resources
from inpaint.serve.http.schema import LARGEST_SEED, Fields, Limits, PictureFields, Prompt, Within
from inpaint.serve.service import AdapterUse, Painted, PaintOrder, Preview, Service

PaintEvent = tuple[int, Preview | Painted]
"""(which of a call's pictures, what came of it)."""
_SAMPLING = {field.name for field in dataclasses.fields(SamplingSettings)} - {"size"}


class TextFields(Fields):
    """What every dialect calls the same."""

    prompt: Prompt = ""
    """What to paint; the category's token is written into it."""
    negative_prompt: Prompt = ""
    """What to steer away from; needs guidance above 1."""
    steps: Annotated[int, Within(1, "max_steps")] | None = None
    """Denoising steps at strength 1; default: the base's."""
    timeout_s: Annotated[float, Within(0, "max_timeout_s", above=True)] | None = None
    """Give up after so many seconds: 408."""


class PaintFields(TextFields, PictureFields):
    """How to paint, under the names that our own dialect and OpenAI's `extra_body` use."""

    n: Annotated[int, Within(1, "max_pictures")] = 1
    """Pictures, with seeds seed, seed + 1, ..."""
    guidance_scale: Annotated[float, Within(0, 100)] | None = None
    """Up to 1 there is none; default: the base's."""
    sampler: Sampler = Sampler.DDIM
    """How noise becomes a picture."""
    strength: Annotated[float, Within(0, 1, above=True)] = 1.0
    """1 forgets what was in the hole, less keeps its layout."""
    padding: Annotated[int, Within(0, "max_padding")] | None = None
    """Paint only the hole's surroundings, with so many pixels around it."""
    stream: bool = False
    """Server-sent events: pictures on the way, then each that is done."""

    def sampling(self, size: int | None = None) -> SamplingSettings:
        """As the painter has them."""
        return SamplingSettings(**self.model_dump(include=_SAMPLING), size=size)


FieldsT = TypeVar("FieldsT", bound=TextFields)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PaintCall(Call[PaintRequest], Generic[FieldsT]):
    """A checked request for `n` pictures that differ in their seed; `request` is the first one's."""

    fields: FieldsT
    adapters: tuple[AdapterUse, ...]
    timeout_s: float
    previews: int

    def orders(self, request_id: str) -> list[PaintOrder]:
        """One per picture: seed, seed + 1, ..."""
        return [
            PaintOrder(
                id=request_id if self.n == 1 else f"{request_id}-{number}",
                request=dataclasses.replace(self.request, seed=self.request.seed + number),
                adapters=self.adapters,
                previews=self.previews,
                timeout_s=self.timeout_s,
            )
            for number in range(self.n)
        ]


class PaintEndpoint(Endpoint[FieldsT, PaintCall[FieldsT], PaintEvent]):
    """A path on which pictures are asked for: its dialect says what its fields mean, and writes the answer."""

    n_field = "n"
    """Blamed where all pictures are too many pixels."""
    adapters_field = "adapters"
    """Blamed where adapters come twice or are too many."""

    def __init__(self, resources: Resources, service: Service) -> None:
        super().__init__(resources)
        self.service = service

    @property
    def limits(self) -> Limits:
        base = self.service.base
        return {**super().limits, "size_multiple": base.size_multiple, "largest_size": largest_size(base)}

    def call(
        self,
        fields: FieldsT,
        *,
        prompt: str,
        chosen: Sequence[ChosenAdapter],
        photo: Photo,
        hole: np.ndarray,
        sampling: SamplingSettings,
        seed: int | None,
        n: int,
        encoding: Encoding,
        previews: int | None = None,
        model: str = "",
        warnings: Sequence[str] = (),
    ) -> PaintCall[FieldsT]:
        """The call, and what all dialects check. Args: previews: per picture, of a stream; None: no stream."""
        settings, base = self.settings, self.service.base
        check_area(photo, n, self.n_field, settings)
        adapters = different(chosen, self.adapters_field, settings.max_adapters)
        return PaintCall(
            model=model or "+".join(use.name for use in adapters) or base.name,
            n=n,
            pixels=hole.size,
            stream=previews is not None,
            warnings=tuple(warnings),
            fields=fields,
            request=PaintRequest(
                image=photo.image,
                hole=hole,
                prompt=prompt,
                negative_prompt=fields.negative_prompt,
                seed=_first_seed(seed, n),
                sampling=sampling.resolved(base),
            ),
            adapters=adapters,
            timeout_s=fields.timeout_s or settings.timeout_s,
            previews=previews or 0,
            encoding=encoding,
        )

    async def submit(self, call: PaintCall[FieldsT], record: Record) -> AsyncGenerator[PaintEvent, None]:
        """Previews and pictures as they come; each number ends with its picture."""
        orders = call.orders(f"{record.id}-{secrets.token_hex(4)}")  # clients may give an id twice
        unpainted = set(range(call.n))
        async with aclosing(self._paint(orders)) as events:
            async for number, event in events:
                if isinstance(event, Painted):
                    unpainted.remove(number)
                    _check(event, orders[number])
                    record.steps += event.steps
                    record.queue_s = max(record.queue_s, event.queue_s)
                    record.paint_s = max(record.paint_s, event.paint_s)
                yield number, event
        assert not unpainted, f"the service ended without pictures {sorted(unpainted)} of {record.id}"

    async def _paint(self, orders: Sequence[PaintOrder]) -> AsyncGenerator[PaintEvent, None]:
        if orders[0].request.hole.any():
            async with aclosing(self.service.paint(orders)) as events:
                async for event in events:
                    yield event
            return
        for number, order in enumerate(orders):
            nothing: dict[str, Any] = dict.fromkeys(("kept_pixels_changed", "steps", "batch_rows"), 0)
            yield number, Painted(image=order.request.image, **nothing, queue_s=0.0, paint_s=0.0)

    def encode(self, call: PaintCall[FieldsT], result: PaintEvent) -> bytes:
        """The picture or preview with its receipt."""
        number, event = result
        base, seed = self.service.base, call.request.seed + number
        sampling = dataclasses.asdict(call.request.sampling)
        receipt = Receipt(
            base=base.name, base_revision=base.revision, adapters=call.adapters, seed=seed, sampling=sampling
        )
        return encode(event.image, call.encoding, receipt, self.infotext(call, seed))

    def infotext(self, call: PaintCall[FieldsT], seed: int) -> str:
        """Text for the picture's `parameters` chunk."""
        return ""

    def headers(self, call: PaintCall[FieldsT]) -> dict[str, str]:
        """What it is painted with; `submit` lets no picture out whose kept pixels were changed."""
        return {
            "x-kept-pixels-changed": "0",
            "x-seed": str(call.request.seed),
            "x-base-revision": self.service.base.revision,
            "x-adapter-digest": ",".join(use.digest for use in call.adapters),
        }


def in_order(results: Sequence[Encoded[PaintEvent]]) -> list[Encoded[PaintEvent]]:
    """A call's results as they are answered."""
    return sorted(results, key=lambda one: one.result[0])


def largest_size(base: BaseInfo) -> int:
    """Of a working size: four times the pixels that the base was trained at."""
    return 2 * base.default_size


def _first_seed(seed: int | None, n: int) -> int:
    """The first picture's; where the client gave none, 32 random bits, which every client can hold."""
    if seed is None:
        return secrets.randbelow(2**32)
    if seed > LARGEST_SEED - n + 1:
        raise bad("seed", f"{seed}; give 0 to {LARGEST_SEED - n + 1} for {n} pictures", "out_of_range")
    return seed


def _check(painted: Painted, order: PaintOrder) -> None:
    """No picture with a changed kept pixel goes out, also under `python -O`."""
    changed, shape, asked = painted.kept_pixels_changed, painted.image.shape, order.request.image.shape
    if changed or shape != asked:
        raise AssertionError(f"order {order.id}: {changed} kept pixels were changed; {shape}, asked {asked}")
