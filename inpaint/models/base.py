"""Bases: pretrained Stable Diffusion and SDXL (inpaint) pipelines, in memory or known without their weights.

Guaranteed: safetensors only, one dtype for all weights whatever is on disk, no network but for a hub id.
Not covered: other families (Flux, SD 3, ...), IP adapters and safety checkers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import SchedulerMixin

from inpaint.errors import InpaintError
from inpaint.models.architectures import Architecture
from inpaint.models.folder import DiffusersFolder
from inpaint.models.layers import Modules, adaptable_layers, adapted_models, features
from inpaint.models.locate import locate
from inpaint.models.vae import settled

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions by the names that settings have for them."""


@dataclass(frozen=True, kw_only=True)
class BaseInfo:
    """What is known of a base without its weights."""

    name: str
    """What the user called it: a folder, a hub id, a file, or `toy`."""
    revision: str
    """Hub commit, or sha256 over the files that are loaded: the same string means the same weights."""
    in_channels: int
    """U-Net input channels: 9 (latents, hole, masked image's latents) or 4 (latents alone)."""
    default_size: int
    """The side, in pixels, that the U-Net was trained at."""
    size_multiple: int
    """Working heights and widths, in pixels, must be multiples of this."""
    downsample: int
    """Pixels per latent, along each side."""
    is_xl: bool
    """SDXL: two text encoders, and the U-Net is told the image's size."""
    layers: Mapping[str, tuple[int, int]]
    """Layer that can carry a LoRA, by its name on disk (`unet.<module>`) -> its (outputs, inputs)."""
    text_widths: tuple[int, ...]
    """Width of the token embeddings of each text encoder."""
    guidance_scale: float
    """What the base prefers where nobody says otherwise."""
    steps: int
    """The same of sampling steps."""


@dataclass(kw_only=True)
class Base(Modules):
    """A loaded base. All modules are in eval mode, on one device, in one dtype; parameters still require grad."""

    info: BaseInfo
    tokenizers: list[Any]
    """CLIP tokenizers; SDXL has two."""
    scheduler: SchedulerMixin
    """As stored; we use its `alphas_cumprod` and config (see `inpaint.diffusion.schedule`)."""
    zero_empty_negative: bool = False
    """SDXL's `force_zeros_for_empty_prompt`: an empty negative prompt is zeros, not the embedding of ""."""

    @property
    def device(self) -> torch.device:
        # Not `self.unet.device`, for which diffusers looks at every module, several times in each step.
        return self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._weight.dtype

    @property
    def _weight(self) -> torch.Tensor:
        weight: torch.Tensor = self.unet.conv_in.weight
        return weight

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
    with no_progress_bars():
        modules = source.load(dtype)
    return assembled(source, modules, name=str(name), revision=found).to(device)


def read_base_info(name: str, revision: str | None = None) -> BaseInfo:
    """The same as `load_base(name).info`, from configuration files or a header alone. Raises InpaintError, too."""
    source, found = locate(name, revision, weights=False)
    with torch.device("meta"):
        modules = source.blank()
    return info_of(modules, name=name, revision=found, **source.preferences())


def load_tokenizers(name: str, revision: str | None = None) -> list[Any]:
    """The base's CLIP tokenizers, without its weights; SDXL has two. Raises InpaintError, as `load_base`."""
    source, _ = locate(name, revision, weights=False)
    return source.tokenizers()


def assembled(source: DiffusersFolder | Architecture, modules: Modules, *, name: str, revision: str) -> Base:
    """A base from its modules, and what needs no weights from where they came from. Raises as `info_of`."""
    info = info_of(modules, name=name, revision=revision, **source.preferences())
    modules.vae = settled(modules.vae, is_xl=info.is_xl)
    for module in (*modules.text_encoders, modules.vae, modules.unet):
        module.eval()
    tokenizers = source.tokenizers()
    _check_text(name, tokenizers, modules)
    return Base(
        info=info,
        tokenizers=tokenizers,
        scheduler=source.scheduler(),
        zero_empty_negative=source.zero_empty_negative,
        **vars(modules),
    )


def _check_text(name: str, tokenizers: list[Any], modules: Modules) -> None:
    """Raises InpaintError for tokens that have no embedding or no place: new ones would take their rows."""
    for tokenizer, encoder in zip(tokenizers, modules.text_encoders, strict=True):
        tokens, rows = len(tokenizer), encoder.get_input_embeddings().num_embeddings
        if tokens != rows:
            raise InpaintError(
                f"{name}: a tokenizer has {tokens} tokens, its text encoder embeds {rows}; give the tokenizer that the "
                "base was trained with, without added tokens"
            )
        window, places = tokenizer.model_max_length, encoder.config.max_position_embeddings
        if window > places:
            raise InpaintError(f"{name}: a tokenizer's model_max_length is {window}, its text encoder takes {places}")


def info_of(modules: Modules, *, name: str, revision: str, guidance_scale: float = 7.5, steps: int = 25) -> BaseInfo:
    """What modules are, whether or not they have weights. Raises InpaintError for a U-Net of other inputs than ours."""
    vae, unet = modules.vae.config, modules.unet.config
    if unet.in_channels not in (4, 9):
        raise InpaintError(
            f"{name}: its U-Net takes {unet.in_channels} input channels; supported are 9 (inpainting) and 4 (text to "
            "image)"
        )
    if unet.time_cond_proj_dim is not None:
        raise InpaintError(f"{name}: a distilled U-Net that takes its guidance scale as input (LCM) is not supported")
    downsample = 2 ** (len(vae.block_out_channels) - 1)
    return BaseInfo(
        name=name,
        revision=revision,
        in_channels=unet.in_channels,
        default_size=unet.sample_size * downsample,
        size_multiple=downsample * 2 ** (len(unet.block_out_channels) - 1),
        downsample=downsample,
        is_xl=len(modules.text_encoders) == 2,
        layers={
            name: features(layer)[::-1]
            for prefix, model in adapted_models(modules).items()
            for name, (_, layer) in adaptable_layers(model, prefix).items()
        },
        text_widths=tuple(encoder.config.hidden_size for encoder in modules.text_encoders),
        guidance_scale=float(guidance_scale),
        steps=int(steps),
    )


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without transformers' and diffusers' bars ("Loading weights"), which would stand between our own lines."""
    shown = [lib.utils.logging for lib in (transformers, diffusers) if lib.utils.logging.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
