"""What the painting engine is told."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from inpaint.errors import InpaintError


class EngineSettings(BaseModel):
    """Sizes and ways of working; memory is base + `slots` x `max_rank` + what these rows and caches hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_rows: int = Field(default=16, ge=2)
    """Most U-Net rows per tick; an order with guidance takes two."""
    ahead_rows: int = Field(default=8, ge=0)
    """U-Net rows whose orders are read and encoded while they wait for a place in a tick."""
    side_rows: int = Field(default=4, ge=1)
    """Most pictures that are encoded, and most that are decoded, between two ticks."""
    slots: int = Field(default=64, ge=1)
    """Adapters that can be resident."""
    max_rank: int = Field(default=16, ge=1)
    """Largest rank of an adapter."""
    prompt_cache: int = Field(default=256, ge=1)
    """Texts whose embeddings are remembered."""
    batch_sizes: tuple[int, ...] = ()
    """Numbers of U-Net rows that ticks are padded to, rising to `max_rows`; needed with `compile`."""
    compile: bool = False
    """Compile the U-Net, before the first order comes; meant for GPUs, and not yet run on one."""
    compile_shapes: tuple[tuple[int, int], ...] = ()
    """Working heights and widths, in pixels, that it is compiled for, each for all of `batch_sizes`, with a ControlNet
    once more for the rows that it sees; unset: the square that the base was trained at. Orders of other shapes, several
    adapters or long prompts are painted uncompiled."""
    channels_last: bool = True
    """Keep U-Net and VAE in that memory format, which convolutions on CPUs like; not yet measured on a GPU."""
    attention: Literal["auto", "flash", "efficient", "cudnn", "math"] = "auto"
    """The kernel of torch's scaled dot product attention."""
    threads: int = Field(default=2, ge=1)
    """That resize photos and paste back."""
    loaders: int = Field(default=1, ge=1)
    """Threads that load adapters."""
    longest_turn_s: float = Field(default=600.0, gt=0)
    """A step, or its first compilation, that takes longer is a hang: the painter is replaced."""

    @model_validator(mode="after")
    def _check_batch_sizes(self) -> Self:
        sizes = self.batch_sizes
        if sizes and (list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] != self.max_rows):
            raise InpaintError(f"batch_sizes {sizes}: give rising numbers that end with max_rows {self.max_rows}")
        if self.compile_shapes and not self.compile:
            raise InpaintError(f"compile_shapes {self.compile_shapes}: no effect without compile; set that, too")
        if self.compile and not sizes:
            raise InpaintError("compile: give batch_sizes, or every new number of rows is compiled anew")
        return self
