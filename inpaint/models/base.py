"""Bases: pretrained Stable Diffusion and SDXL (inpaint) pipelines in memory, with their weights or random ones.

Guaranteed: safetensors only, one dtype for all weights whatever is on disk, no network but for a hub id.
Not covered: other families (Flux, SD 3, ...), IP adapters and safety checkers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel

from inpaint.errors import InpaintError
from inpaint.models.architectures import ARCHITECTURES, Architecture, Modules
from inpaint.models.folder import DiffusersFolder
from inpaint.models.info import BaseInfo, info_of
from inpaint.models.locate import locate

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions by the names that settings have for them."""


@dataclass(kw_only=True)
class Base:
    """A loaded base. All modules are in eval mode, on one device, in one dtype; parameters still require grad."""

    info: BaseInfo
    tokenizers: list[Any]
    """CLIP tokenizers; SDXL has two."""
    text_encoders: list[Any]
    """CLIPTextModel, and for SDXL also CLIPTextModelWithProjection."""
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: SchedulerMixin
    """As stored; we use its `alphas_cumprod` and config (see `inpaint.diffusion.schedule`)."""
    zero_empty_negative: bool = False
    """SDXL's `force_zeros_for_empty_prompt`: an empty negative prompt is zeros, not the embedding of ""."""

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def to(self, device: str | torch.device) -> "Base":
        """Moves every module to `device`, in place; returns self."""
        for module in (*self.text_encoders, self.vae, self.unet):
            module.to(device)
        return self


def load_base(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Base:
    """Loads a base.

    Args:
        name: a folder in diffusers format, a `.safetensors` file, a hub id (`owner/name`), or `toy`.
        revision: branch, tag or commit of a hub id; else the expected sha256 (`BaseInfo.revision`).
        dtype: of all weights once loaded; fp16 files are upcast.

    Raises:
        InpaintError: not found, not one of the supported families, no safetensors, or not the given revision.
    """
    source, found = locate(str(name), revision, weights=True)
    with _no_progress_bars():
        modules = source.load(dtype)
    return _assembled(source, info_of(str(name), found, modules, **source.preferences()), modules).to(device)


def build_architecture(
    name: str, *, device: str | torch.device, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Base:
    """A base with random weights, made on `device` in `dtype`: no fp32 copy, none on the CPU.

    Args:
        name: one of `ARCHITECTURES`.
        device: `meta` gives the shapes alone, at once and without memory.

    Raises:
        InpaintError: an unknown name.
    """
    if name not in ARCHITECTURES:
        raise InpaintError(f"architecture {name!r}: give one of {', '.join(ARCHITECTURES)}")
    with _random_weights(torch.device(device), dtype, seed):
        modules = ARCHITECTURES[name].blank()
    return _assembled(ARCHITECTURES[name], info_of(name, f"random-{seed}", modules), modules)


def _assembled(source: DiffusersFolder | Architecture, info: BaseInfo, modules: Modules) -> Base:
    encoders, vae, unet = modules
    if info.is_xl and unet.dtype == torch.float16 and vae.config.force_upcast:
        # SDXL's VAE overflows in fp16; diffusers' pipelines cast it up at each use.
        vae.float()
    for module in (*encoders, vae, unet):
        module.eval()
    return Base(
        info=info,
        tokenizers=list(source.tokenizers()),
        text_encoders=encoders,
        vae=vae,
        unet=unet,
        scheduler=source.scheduler(),
        zero_empty_negative=source.zero_empty_negative,
    )


@contextmanager
def _random_weights(device: torch.device, dtype: torch.dtype, seed: int) -> Iterator[None]:
    """Within, modules are made on `device` in `dtype`, with numbers drawn from `seed`."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Without transformers' and diffusers' bars ("Loading weights"), which would stand between our own lines."""
    shown = [lib.utils.logging for lib in (transformers, diffusers) if lib.utils.logging.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
