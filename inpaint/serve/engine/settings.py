"""What the painting engine is told."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from inpaint.errors import InpaintError


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Sizes and ways of working; memory is base + `slots` x `max_rank` + what these rows and caches hold."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    max_rows: int = 16
    """Most U-Net rows per tick, at least 2; an order with guidance takes two."""
    ahead_rows: int = 8
    """U-Net rows whose orders are read and encoded while they wait for a place in a tick."""
    side_rows: int = 4
    """Most pictures that are encoded, and most that are decoded, between two ticks."""
    slots: int = 64
    """Adapters that can be resident."""
    max_rank: int = 16
    """Largest rank of an adapter."""
    prompt_cache: int = 256
    """Texts whose embeddings are remembered."""
    batch_sizes: tuple[int, ...] = ()
    """Numbers of U-Net rows that ticks are padded to, rising to `max_rows`; needed with `compile`."""
    compile: bool = False
    """Compile the U-Net for each of `batch_sizes`; meant for GPUs, and not yet run on one."""
    channels_last: bool = True
    """Keep U-Net and VAE in that memory format, which convolutions on CPUs like; not yet measured on a GPU."""
    attention: Literal["auto", "flash", "efficient", "cudnn", "math"] = "auto"
    """The kernel of torch's scaled dot product attention."""
    threads: int = 2
    """That resize photos and paste back."""
    loaders: int = 1
    """Threads that load adapters."""

    def __post_init__(self) -> None:
        for name in ("side_rows", "slots", "max_rank", "prompt_cache", "threads", "loaders"):
            if getattr(self, name) < 1:
                raise InpaintError(f"{name} {getattr(self, name)}: give at least 1")
        if self.max_rows < 2 or self.ahead_rows < 0:
            raise InpaintError(
                f"max_rows {self.max_rows}, ahead_rows {self.ahead_rows}: give at least 2 (for guidance) and 0"
            )
        sizes = self.batch_sizes
        if sizes and (list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] != self.max_rows):
            raise InpaintError(f"batch_sizes {sizes}: give rising numbers that end with max_rows {self.max_rows}")
        if self.compile and not sizes:
            raise InpaintError("compile: give batch_sizes, or every new number of rows is compiled anew")
