"""What the painting dialects share: fields, a call's orders, and the way to the service and back."""

import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Generic, Literal, TypeVar

from inpaint.diffusion.samplers import Sampler
from inpaint.models.info import BaseInfo
from inpaint.paint.request import PaintRequest, SamplingSettings
from inpaint.serve.http.endpoint import Call, Encoded, Endpoint
from inpaint.serve.http.errors import bad
from inpaint.serve.http.receipt import Encoding, Receipt, encode
from inpaint.serve.http.record import Record
from inpaint.serve.http.resources import Resources
from inpaint.serve.http.schema import LARGEST_SEED, Fields, FieldsT, Limits, Prompt, Within
from inpaint.serve.service import AdapterUse, Painted, PaintOrder, Preview, Service

PaintEvent = tuple[int, Preview | Painted]
"""(which of a call's pictures, what came of it)."""


class PaintFields(Fields):
    """How to paint, under the names that our own dialect and OpenAI's `extra_body` use."""

    prompt: Prompt = ""
    """What to paint; the category's token is written into it."""
    negative_prompt: Prompt = ""
    """What to steer away from; needs guidance above 1."""
    n: Annotated[int, Within(1, "max_pictures")] = 1
    """Pictures, with seeds seed, seed + 1, ..."""
    seed: Annotated[int, Within(0, LARGEST_SEED)] | None = None
    """Same request, same seed: same picture. Random if not given; x-seed says."""
    steps: Annotated[int, Within(1, "max_steps")] | None = None
    """Denoising steps at strength 1; default: the base's."""
    guidance_scale: Annotated[float, Within(0, 100)] | None = None
    """Up to 1 there is none; default: the base's."""
    sampler: Sampler = Sampler.DDIM
    """How noise becomes a picture."""
    strength: Annotated[float, Within(0, 1, above=True)] = 1.0
    """1 forgets what was in the hole, less keeps its layout."""
    padding: Annotated[int, Within(0, "max_padding")] | None = None
    """Paint only the hole's surroundings, with so many pixels around it."""
    feather: Annotated[int, Within(0, "max_feather")] = 0
    """Pixels inside the hole over which the photo fades into the painting."""
    timeout_s: Annotated[float, Within(0, "max_timeout_s", above=True)] | None = None
    """Give up after so many seconds: 408."""
    output_format: Literal["png", "jpeg", "jpg", "webp"] = "png"
    """Only png keeps kept pixels bit for bit."""

    def sampling(self, base: BaseInfo, size: int | None = None) -> SamplingSettings:
        """The settings, decided."""
        return SamplingSettings(
            sampler=self.sampler,
            steps=self.steps,
            strength=self.strength,
            guidance_scale=self.guidance_scale,
            size=size,
            padding=self.padding,
            feather=self.feather,
        ).resolved(base)


@dataclass(frozen=True, kw_only=True, eq=False)
class PaintCall(Call):
    """A checked request for `n` pictures that differ in their seed."""

    request: PaintRequest
    """Of the first picture."""
    adapters: tuple[AdapterUse, ...]
    timeout_s: float
    previews: int = 0
    encoding: Encoding

    def orders(self, request_id: str) -> list[PaintOrder]:
        """One per picture: seed, seed + 1, ..."""
        return [
            PaintOrder(
                id=request_id if self.n == 1 else f"{request_id}-{number}",
                request=replace(self.request, seed=self.request.seed + number),
                adapters=self.adapters,
                previews=self.previews,
                timeout_s=self.timeout_s,
            )
            for number in range(self.n)
        ]


PaintCallT = TypeVar("PaintCallT", bound=PaintCall)


class PaintEndpoint(Endpoint[FieldsT, PaintCallT, PaintEvent], Generic[FieldsT, PaintCallT]):
    """A path on which pictures are asked for: its dialect reads the call and writes the answer."""

    def __init__(self, resources: Resources, service: Service) -> None:
        super().__init__(resources)
        self.service = service

    @property
    def limits(self) -> Limits:
        base = self.service.base
        return {**super().limits, "size_multiple": base.size_multiple, "largest_size": largest_size(base)}

    async def submit(self, call: PaintCallT, record: Record) -> AsyncGenerator[PaintEvent, None]:
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
            image = order.request.image
            nothing: dict[str, Any] = {"kept_pixels_changed": 0, "steps": 0, "batch_rows": 0.0}
            yield number, Painted(image=image, **nothing, queue_s=0.0, paint_s=0.0)

    def encode(self, call: PaintCallT, result: PaintEvent) -> bytes:
        """The picture or preview with its receipt."""
        number, event = result
        seed = call.request.seed + number
        base = self.service.base
        receipt = Receipt(
            base=base.name,
            base_revision=base.revision,
            adapters=call.adapters,
            seed=seed,
            sampling=asdict(call.request.sampling),
        )
        return encode(event.image, call.encoding, receipt, self.infotext(call, seed))

    def infotext(self, call: PaintCallT, seed: int) -> str:
        """Text for the picture's `parameters` chunk."""
        return ""

    def headers(self, call: PaintCallT) -> dict[str, str]:
        """What it is painted with. No picture with a changed kept pixel goes out: `submit` counts."""
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


def first_seed(seed: int | None, n: int) -> int:
    """The first picture's seed; where the client gave none, 32 random bits, which every client can hold."""
    if seed is None:
        return secrets.randbelow(2**32)
    if seed > LARGEST_SEED - n + 1:
        raise bad("seed", f"{seed}; give 0 to {LARGEST_SEED - n + 1} for {n} pictures", "out_of_range")
    return seed


def _check(painted: Painted, order: PaintOrder) -> None:
    if painted.kept_pixels_changed:
        raise AssertionError(f"order {order.id}: {painted.kept_pixels_changed} kept pixels were changed")
    if painted.image.shape != order.request.image.shape:
        raise AssertionError(f"order {order.id}: painted {painted.image.shape}, asked {order.request.image.shape}")
