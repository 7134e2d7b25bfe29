"""Bases: pretrained Stable Diffusion and SDXL (inpaint) pipelines in diffusers format, loaded by component.

Guaranteed: safetensors only, and one dtype for all weights whatever is on disk (see `inpaint.models.files`).
Not covered: other families (Flux, SD 3, ...), IP adapters and safety checkers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel

from inpaint.errors import InpaintError
from inpaint.models.files import BaseFiles, locate, weights_variant
from inpaint.models.info import BaseInfo, info_of, preferences


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
    """As stored in the folder; we use its `alphas_cumprod` and config (see `inpaint.diffusion.schedule`)."""
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
        name: a folder in diffusers format, a hub id (`owner/name`), or `toy`.
        revision: branch, tag or commit of a hub id; for a folder its expected sha256 (`BaseInfo.revision`).
        dtype: of all weights once loaded; fp16 files are upcast.

    Raises:
        InpaintError: not found, not one of the supported families, no safetensors, or not the given revision.
    """
    files = locate(str(name), revision, weights=True)
    text_encoders = [_load(files, part, dtype) for part in files.text_encoders]
    vae, unet = _load(files, "vae", dtype), _load(files, "unet", dtype)
    info = info_of(
        files.name,
        files.revision,
        unet=unet,
        text_encoders=text_encoders,
        vae_config=vae.config,
        **preferences(files.folder),
    )
    if info.is_xl and dtype == torch.float16 and vae.config.force_upcast:
        # SDXL's VAE overflows in fp16; diffusers' pipelines cast it up at each use.
        vae.float()
    for module in (*text_encoders, vae, unet):
        module.eval()
    base = Base(
        info=info,
        tokenizers=[_load_plain(files, part) for part in files.tokenizers],
        text_encoders=text_encoders,
        vae=vae,
        unet=unet,
        scheduler=_load_plain(files, "scheduler"),
        zero_empty_negative=info.is_xl and bool(files.index.get("force_zeros_for_empty_prompt", True)),
    )
    return base.to(device)


def _load_plain(files: BaseFiles, part: str) -> Any:
    """A tokenizer or scheduler: files without weights."""
    library = diffusers if part == "scheduler" else transformers
    if not (files.folder / part).is_dir():
        raise InpaintError(f"{files.folder}: the folder {part}/ is missing")
    return getattr(library, files.index[part][1]).from_pretrained(files.folder / part)


def _load(files: BaseFiles, part: str, dtype: torch.dtype) -> Any:
    """A module with weights, from safetensors, plain if there, else the fp16 variant."""
    folder, variant = files.folder / part, weights_variant(files.folder, part)
    if part in ("vae", "unet"):
        kind = AutoencoderKL if part == "vae" else UNet2DConditionModel
        return kind.from_pretrained(folder, use_safetensors=True, variant=variant, torch_dtype=dtype)
    kind = getattr(transformers, files.index[part][1])
    return kind.from_pretrained(folder, use_safetensors=True, variant=variant, dtype=dtype)
