"""Bases of the real architectures with random weights: shapes, parameter counts and so the cost are the real ones."""

import torch

from inpaint.errors import InpaintError
from inpaint.models.architectures import Architecture
from inpaint.models.base import Base, assembled

ARCHITECTURES = {
    "sd15": Architecture(is_xl=False, in_channels=4),
    "sd15-inpaint": Architecture(is_xl=False, in_channels=9),
    "sdxl": Architecture(is_xl=True, in_channels=4),
    "sdxl-inpaint": Architecture(is_xl=True, in_channels=9),
}


def build_architecture(
    name: str, *, device: str | torch.device, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Base:
    """A base made on `device` in `dtype`: no fp32 copy, none on the CPU.

    Args:
        name: one of `ARCHITECTURES`.
        device: `meta` gives the shapes alone, at once and without memory.

    Raises:
        InpaintError: an unknown name.
    """
    if name not in ARCHITECTURES:
        raise InpaintError(f"architecture {name!r}: give one of {', '.join(ARCHITECTURES)}")
    device, before = torch.device(device), torch.get_default_dtype()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            modules = ARCHITECTURES[name].blank()
        finally:
            torch.set_default_dtype(before)
    return assembled(ARCHITECTURES[name], modules, name=name, revision=f"random-{seed}")
