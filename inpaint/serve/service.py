"""What the rooms of the service hand each other: orders, what comes of them, and what they find each other to be.

    dialects (HTTP bytes) -> PaintOrder -> Service (registry, admission, router) -> Engine (one base, its loop)
                          <- Begun, Preview, ..., Painted <-

Plain frozen values; no ray, no HTTP, no torch modules. A dialect never sees a replica, the engine never sees bytes of
a client that were not checked.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from inpaint.errors import InpaintError

if TYPE_CHECKING:  # HTTP starts sooner without torch and diffusers
    from inpaint.models.adapter import AdapterCard
    from inpaint.models.base import BaseInfo
    from inpaint.paint.request import PaintRequest
    from inpaint.vision.finder import Findings, FindQuery


@dataclass(frozen=True, kw_only=True)
class AdapterUse:
    """One adapter of an order, pinned to the version that was there when the order came."""

    name: str
    """Of its folder in the registry."""
    digest: str
    """sha256 of its `adapter.json`, which holds the sha256 of every file: names the exact bytes."""
    weight: float = 1.0
    """Of its LoRA; its token embeddings are used whole."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PaintOrder:
    """One picture to paint. All settings are decided: running it twice gives the same picture."""

    id: str
    """Of the HTTP request, with the picture's number where there are several."""
    request: "PaintRequest"
    """With tokens in its prompt."""
    adapters: tuple[AdapterUse, ...] = ()
    previews: int = 0
    """Pictures of the state between wanted on the way, spread evenly over the steps."""
    timeout_s: float | None = None
    """Given up when it takes longer than this."""
    key: str = ""
    """Who asks: the name of its API key. The queue is shared fairly by these."""
    alone: bool = False
    """Painted while its painter paints nothing else: one was lost with it before."""
    work: float = 0.0
    """U-Net rows that it takes, weighed by their pixels (`inpaint.serve.admission`); the dispatcher fills it in."""


@dataclass(frozen=True)
class Begun:
    """A painter has begun with the order: where it dies from now on, the order may be why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Preview:
    """What the picture looks like on the way: H x W x 3 uint8, kept pixels the original's."""

    index: int
    image: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Painted:
    """An order done."""

    image: np.ndarray
    """H x W x 3 uint8, the original with its hole painted."""
    kept_pixels_changed: int
    """Counted on this picture; always 0, or the engine has raised."""
    steps: int
    """Denoising steps taken; 0 where the hole was empty."""
    batch_rows: float
    """Mean number of U-Net rows in the ticks that it took part in."""
    queue_s: float
    paint_s: float
    tokens_cut: int = 0
    """Of prompt and negative prompt: beyond the last chunk, without effect."""


class Overloaded(InpaintError):
    """The service's queue is full; nothing was begun. Try again in `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type["Overloaded"], tuple[str, float]]:
        return type(self), (str(self), self.retry_after_s)


class DeadlinePassed(InpaintError):
    """The order took longer than its `timeout_s`."""


class Unpaintable(InpaintError):
    """The order fails wherever it is painted; what was painted beside it does not."""


class AdapterGone(InpaintError):
    """The registry no longer has this version of an adapter, and no replica holds it."""


@dataclass(frozen=True, kw_only=True)
class ServedAdapter:
    """One adapter that the registry serves now."""

    name: str
    digest: str
    card: "AdapterCard"


class Service(Protocol):
    """What the HTTP dialects need of the service behind them."""

    @property
    def base(self) -> "BaseInfo":
        """The base that all orders are painted with."""

    def catalogue(self) -> Mapping[str, ServedAdapter]:
        """Adapter name -> what is served under it now. Cheap: asked for with every request."""

    def refused(self) -> Mapping[str, str]:
        """Adapter name -> why it is not served."""

    def paint(self, orders: Sequence[PaintOrder]) -> AsyncGenerator[tuple[int, Preview | Painted], None]:
        """Paint all or admit none: (number of the order, what came), each number ending with its Painted.

        Closing the generator takes the orders off their replicas.

        Raises:
            Overloaded: before anything was begun.
            DeadlinePassed: an order took too long.
            InpaintError: an order cannot be painted, whoever tries.
        """

    async def healthy(self) -> bool:
        """Whether a replica does, or can be started to do, real work."""


class Vision(Protocol):
    """What looks at photos before they are painted on."""

    async def find(self, image: np.ndarray, query: "FindQuery") -> "Findings":
        """What of these products is in a photo, H x W x 3 uint8. Raises Overloaded, or InpaintError."""

    async def control(self, image: np.ndarray) -> np.ndarray | None:
        """What the painters' ControlNet is shown of an image, both H x W x 3 uint8; None: they have none. Raises as
        `find`."""
