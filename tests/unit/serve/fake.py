"""A service without an engine: paints holes in one colour, checks that only valid orders come, and does as told."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event, Thread

import numpy as np
import uvicorn
from PIL import Image

from inpaint.diffusion.samplers import Sampler
from inpaint.models.adapter import AdapterCard
from inpaint.serve.dialects.paint_http import paint_http
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.service import Painted, PaintOrder, Preview, ServedAdapter
from tests.tiny import base_info
from tests.unit.data.images import encoded, mask, picture

BLUE = (0, 0, 255)
KEY = "sk-0123456789abcdef"
BASE = base_info()


def entry(name: str, **tokens: str) -> ServedAdapter:
    card = AdapterCard(
        base="toy",
        base_revision=BASE.revision,
        tokens=tokens or {name: name},
        prompt_format="{token} background, {prompt}",
        resolution=64,
        rank=4,
        alpha=4.0,
        samples=100,
        manifest="m",
    )
    return ServedAdapter(name=name, digest=(name.encode().hex() * 64)[:64], card=card)


CATALOGUE = {
    name: entry(name, **tokens)
    for name, tokens in {
        "CDP_FOOD": {},
        "CDP_COS": {},
        "home": {"CDP_SOFA": "CDP_SOFA", "CDP_LAMP": "CDP_LAMP"},
    }.items()
}


class FakeService:
    """Set `fails` to raise it at once, `waits` to paint for ever, `fails_later` to raise after the previews."""

    base = BASE

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.orders: list[PaintOrder] = []
        self.closed = Event()
        self.begun = Event()
        self.fails: Exception | None = None
        self.fails_times = 1_000
        self.fails_later: Exception | None = None
        self.waits = False
        self.is_healthy = True
        self.changed = 0

    def catalogue(self) -> Mapping[str, ServedAdapter]:
        return CATALOGUE

    def refused(self) -> Mapping[str, str]:
        return {"BROKEN": "rank 0"}

    async def healthy(self) -> bool:
        return self.is_healthy

    async def paint(self, orders: Sequence[PaintOrder]) -> AsyncGenerator[tuple[int, Preview | Painted], None]:
        try:
            self.orders += orders
            check(orders)
            if self.fails is not None and self.fails_times > 0:
                self.fails_times -= 1
                raise self.fails
            for number, order in enumerate(orders):
                for index in range(order.previews):
                    yield number, Preview(index=index, image=order.request.image)
            self.begun.set()
            # A task-bound context: painting must not move from one task to another.
            async with asyncio.timeout(60):
                await asyncio.sleep(60 if self.waits else 0)
            if self.fails_later is not None:
                raise self.fails_later
            for number, order in reversed(list(enumerate(orders))):
                yield number, self._painted(order)
        finally:
            self.closed.set()

    def _painted(self, order: PaintOrder) -> Painted:
        image = order.request.image.copy()
        image[order.request.hole] = BLUE
        return Painted(
            image=image,
            kept_pixels_changed=self.changed,
            tokens_cut=max(0, len(order.request.prompt.split()) - 75 * order.request.sampling.prompt_chunks),
            steps=order.request.sampling.steps,
            batch_rows=1.0,
            queue_s=0.25,
            paint_s=0.5,
        )


def check(orders: Sequence[PaintOrder]) -> None:
    """Raise AssertionError where the HTTP side let something through that no engine should see."""
    limits = HttpSettings()
    assert 1 <= len(orders) <= limits.max_pictures
    assert len({order.id for order in orders}) == len(orders)
    for order in orders:
        request = order.request
        height, width = request.hole.shape
        assert request.hole.any(), "without a hole there is nothing to paint"
        assert BASE.size_multiple <= min(height, width) and max(height, width) <= limits.max_side
        assert height * width <= limits.max_pixels
        assert 0 <= request.seed < 2**63 and 1 <= request.sampling.steps <= limits.max_steps
        assert 0 <= request.sampling.guidance_scale <= 100 and 0 < request.sampling.strength <= 1
        assert request.sampling.size is None or BASE.size_multiple <= request.sampling.size <= 2 * BASE.default_size
        assert 0 <= request.sampling.feather <= limits.max_feather
        padding = request.sampling.padding
        assert padding in (None, "whole") or 0 <= padding <= limits.max_padding
        for text in (request.prompt, request.negative_prompt):
            assert len(text.encode("utf-8")) <= 5 * limits.max_prompt_chars and "\0" not in text
        assert isinstance(request.sampling.sampler, Sampler)
        assert order.timeout_s is not None and 0 < order.timeout_s <= limits.max_timeout_s
        assert 0 <= order.previews <= 8
        assert len({use.name for use in order.adapters}) == len(order.adapters) <= limits.max_adapters
        for use in order.adapters:
            assert CATALOGUE[use.name].digest == use.digest and abs(use.weight) <= limits.max_weight


def photo_png(width: int = 40, height: int = 30) -> bytes:
    return encoded(picture(width, height))


def mask_png(width: int = 40, height: int = 30) -> bytes:
    """White in the upper left quarter."""
    return encoded(mask(width, height))


def alpha_png(width: int = 40, height: int = 30) -> bytes:
    """The photo, transparent in the upper left quarter: OpenAI's mask for the same hole as `mask_png`'s."""
    image = picture(width, height).convert("RGBA")
    image.putalpha(Image.fromarray(255 - np.asarray(mask(width, height))))
    return encoded(image)


def hole(width: int = 40, height: int = 30) -> np.ndarray:
    return np.asarray(mask(width, height)) > 0


def expected(width: int = 40, height: int = 30) -> np.ndarray:
    """What comes of the photo and either mask."""
    image = np.array(picture(width, height))
    image[hole(width, height)] = BLUE
    return image


@contextmanager
def served(service: FakeService, settings: HttpSettings | None = None, metrics=None):
    """The application behind a real server on a free port of this machine; gives its URL."""
    app = paint_http(service, settings or HttpSettings(), metrics)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"
