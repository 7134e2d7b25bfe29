"""Where latents come from: the trainer's own VAE at every step, entries that were encoded before, or other machines."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from inpaint.data.latents import LatentSpec
from inpaint.errors import InpaintError
from inpaint.rowmap import ActorPool


class Latents(StrEnum):
    """Where latents come from. Whatever is chosen, a run learns the same, to the bit where it computes in fp32."""

    ONLINE = "online"
    """Each sample is encoded when it comes, by those that train."""
    CACHED = "cached"
    """All that a run needs is encoded before it begins, by a pool of actors, and kept in files."""
    STREAMED = "streamed"
    """Each sample is encoded when it comes, beside the training, by a pool of actors, such as on cheaper GPUs."""


@dataclass(frozen=True, kw_only=True)
class EncodingSettings:
    """How latents are made that are not made by those that train."""

    cache: str | None = None
    """Of `cached`: folder or URL, which runs may share: what one encoded serves the others; unset: `latents` in the
    run's output."""
    limit_gb: float | None = None
    """Above this, the files of the cache that were not used for longest are removed; unset: none are."""
    actors: int | None = None
    """Encoders side by side; unset: for `cached` as many as the GPUs hold, or one per CPU machine, for `streamed` 1."""
    cpus_per_actor: float | None = None
    """Unset: what its machine has, shared among the actors; 1 beside a GPU."""
    gpus_per_actor: float = 1.0
    """Share of a GPU that an encoder takes, where the cluster has GPUs; 0 encodes on CPUs."""
    accelerator: str | None = None
    """Kind of GPU that encoders run on, as Ray calls it (`L4`, `T4`), where the cluster has several; unset: any."""

    def __post_init__(self) -> None:
        _ = self.pool
        if self.limit_gb is not None and self.limit_gb <= 0:
            raise InpaintError(f"encoding.limit_gb {self.limit_gb}: give GB, more than 0, or leave it out")

    @property
    def pool(self) -> ActorPool:
        """What is taken of the cluster. Raises InpaintError where it cannot be."""
        return ActorPool(
            actors=self.actors, cpus_per_actor=self.cpus_per_actor, gpus_per_actor=self.gpus_per_actor, max_batch=1
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoding:
    """What encodes the samples of a bound recipe."""

    latents: Latents
    settings: EncodingSettings
    spec: LatentSpec
    size: tuple[int, int]
    """Height and width of the largest images, in pixels."""
    cache: str
    """Where entries are kept: a path or URL."""
    load_vae: Callable[[], Any]
    """On the CPU; travels to the encoders."""
    keeps_image: bool
    """As `ReadSettings.keeps_image`."""
