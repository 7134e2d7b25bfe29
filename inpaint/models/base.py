"""Bases: pretrained Stable Diffusion and SDXL (inpaint) pipelines in diffusers format, loaded by component.

Guaranteed: safetensors only (no pickle is ever opened), one dtype for all weights whatever is on disk, and a
`revision` that identifies the exact files (hub commit, or sha256 over a local folder).
Not covered: single-file checkpoints, other families (Flux, SD 3, ...), IP adapters and safety checkers.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from inpaint.errors import InpaintError
from inpaint.models.hub import WEIGHT_STEMS, download_base, download_configs

TOY_BASE = Path(__file__).resolve().parent.parent / "toy" / "weights" / "base"
"""The base shipped with the package, which the name `toy` stands for."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": ("text_encoder",),
    "StableDiffusionInpaintPipeline": ("text_encoder",),
    "StableDiffusionXLPipeline": ("text_encoder", "text_encoder_2"),
    "StableDiffusionXLInpaintPipeline": ("text_encoder", "text_encoder_2"),
}
"""Supported pipeline classes -> their text encoders' folders; each has a tokenizer of the same suffix."""

_CLASSES: dict[str, tuple[str, ...]] = {
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "vae": ("AutoencoderKL",),
    "unet": ("UNet2DConditionModel",),
    "scheduler": tuple(s.name for s in KarrasDiffusionSchedulers),
}


@dataclass(kw_only=True)
class Base:
    """A loaded base. All modules are in eval mode, on one device, in one dtype; parameters still require grad."""

    name: str
    """What the user called it: a folder, a hub id, or `toy`."""
    revision: str
    """Hub commit, or sha256 over a local folder's used files: the same string means the same weights."""
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
    def in_channels(self) -> int:
        """U-Net input channels: 9 (latents, hole, masked image's latents) or 4 (latents alone)."""
        return int(self.unet.config.in_channels)

    @property
    def downsample(self) -> int:
        """Pixels per latent, along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def is_xl(self) -> bool:
        return len(self.text_encoders) == 2

    @property
    def default_size(self) -> int:
        """The side, in pixels, that the U-Net was trained at."""
        return int(self.unet.config.sample_size) * self.downsample

    @property
    def size_multiple(self) -> int:
        """Working heights and widths, in pixels, must be multiples of this."""
        return self.downsample * 2 ** (len(self.unet.config.block_out_channels) - 1)

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
        revision: branch, tag or commit of a hub id; for a folder its expected sha256 (see `folder_revision`).
        dtype: of all weights once loaded; fp16 files are upcast.

    Raises:
        InpaintError: not found, not one of the supported families, no safetensors, or not the given revision.
    """
    folder, found_revision = _locate(str(name), revision)
    index = _read_index(folder)
    encoders = FAMILIES[index["_class_name"]]
    tokenizers = [e.replace("text_encoder", "tokenizer") for e in encoders]
    text_encoders = [_load(folder, index, e, dtype) for e in encoders]
    base = Base(
        name=str(name),
        revision=found_revision,
        tokenizers=[_load_plain(folder, index, t) for t in tokenizers],
        text_encoders=text_encoders,
        vae=_load(folder, index, "vae", dtype),
        unet=_load(folder, index, "unet", dtype),
        scheduler=_load_plain(folder, index, "scheduler"),
        zero_empty_negative=len(encoders) == 2 and bool(index.get("force_zeros_for_empty_prompt", True)),
    )
    if base.in_channels not in (4, 9):
        raise InpaintError(
            f"{name}: its U-Net takes {base.in_channels} input channels; "
            "supported are 9 (inpainting) and 4 (text to image)"
        )
    if base.unet.config.time_cond_proj_dim is not None:
        raise InpaintError(f"{name}: a distilled U-Net that takes its guidance scale as input (LCM) is not supported")
    if base.is_xl and dtype == torch.float16 and base.vae.config.force_upcast:
        # SDXL's VAE overflows in fp16; diffusers' pipelines cast it up at each use.
        base.vae.float()
    for module in (*base.text_encoders, base.vae, base.unet):
        module.eval()
    return base.to(device)


def folder_revision(folder: Path) -> str:
    """sha256 over names and bytes of the files of a base that are used (json, txt, safetensors; no hidden files)."""
    digest = hashlib.sha256()
    for path in sorted(p for s in (".json", ".txt", ".safetensors") for p in folder.rglob(f"*{s}")):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts) or not path.is_file():
            continue
        with path.open("rb") as file:
            digest.update(f"{relative.as_posix()}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class BaseFacts:
    """What a base is, read from its configuration files alone."""

    revision: str
    """As `Base.revision`."""
    default_size: int
    """As `Base.default_size`."""


def base_facts(name: str, revision: str | None = None) -> BaseFacts:
    """What must be known of a base before it is loaded; of a hub id only the configuration files are downloaded.

    Raises:
        InpaintError: not found, or not a supported base.
    """
    folder, found = base_configs(name, revision)
    unet, vae = (json.loads((folder / part / "config.json").read_text(encoding="utf-8")) for part in ("unet", "vae"))
    return BaseFacts(found, int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1))


def base_configs(name: str, revision: str | None = None) -> tuple[Path, str]:
    """A folder with at least the configuration files of a supported base, and the base's revision.

    Raises:
        InpaintError: not found, or not a supported base.
    """
    folder = _local_folder(name)
    if folder is None:
        folder, found = download_configs(name, revision)
    else:
        found = _checked_revision(name, folder, revision)
    _read_index(folder)
    return folder, found


def absolute_name(name: str) -> str:
    """The same base for a process in another directory: a folder's absolute path, a hub id or `toy` as it is."""
    return str(Path(name).expanduser().resolve()) if name != "toy" and Path(name).expanduser().is_dir() else name


def _local_folder(name: str) -> Path | None:
    """The folder of a base on this machine; None for a hub id. Raises InpaintError for anything else."""
    if name == "toy" and not (TOY_BASE / "model_index.json").is_file():
        raise InpaintError(
            f"base 'toy': its weights are not in {TOY_BASE}; make them with `python -m ray_jobs.pretrain_toy`, "
            "or restore them with `git checkout -- inpaint/toy/weights`"
        )
    folder = TOY_BASE if name == "toy" else Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise InpaintError(
            f"base {name}: a single file; a diffusers folder or hub id is needed. Convert it with diffusers: "
            "`StableDiffusionInpaintPipeline.from_single_file(FILE).save_pretrained(FOLDER)`"
        )
    if re.fullmatch(r"[A-Za-z0-9][\w-]*/[\w][\w.-]*", name):
        return None
    raise InpaintError(f"base {name}: no such folder, and not a hub id (owner/name) nor 'toy'")


def _locate(name: str, revision: str | None) -> tuple[Path, str]:
    """The folder of a base on this machine and its revision; downloads hub ids."""
    folder = _local_folder(name)
    if folder is None:
        return download_base(name, revision)
    return folder, _checked_revision(name, folder, revision)


def _checked_revision(name: str, folder: Path, revision: str | None) -> str:
    found = folder_revision(folder)
    if revision is not None and revision != found:
        raise InpaintError(f"base {name}: revision {revision} is wanted, but the files in {folder} are {found}")
    return found


def _read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json`, checked: a supported family, each component of a known class."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise InpaintError(f"{folder}: no model_index.json, so not a pipeline in diffusers format (save_pretrained)")
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InpaintError(f"{path}: not valid JSON ({error})") from error
    family = index.get("_class_name")
    if family not in FAMILIES:
        raise InpaintError(f"{folder}: {family} is not supported; supported are {', '.join(FAMILIES)}")
    encoders = FAMILIES[family]
    needed = (*encoders, *(e.replace("text_encoder", "tokenizer") for e in encoders), "vae", "unet", "scheduler")
    for part in needed:
        _, class_name = index.get(part) or (None, None)
        if class_name not in _CLASSES[part]:
            raise InpaintError(
                f"{folder}: {part} is {class_name}, which is not supported; supported are {', '.join(_CLASSES[part])}"
            )
    return index


def _load_plain(folder: Path, index: Mapping[str, Any], part: str) -> Any:
    """A tokenizer or scheduler: files without weights."""
    class_name = index[part][1]
    library = diffusers if part == "scheduler" else transformers
    if not (folder / part).is_dir():
        raise InpaintError(f"{folder}: the folder {part}/ is missing")
    return getattr(library, class_name).from_pretrained(folder / part)


def _load(folder: Path, index: Mapping[str, Any], part: str, dtype: torch.dtype) -> Any:
    """A module with weights, from safetensors, plain if there, else the fp16 variant."""
    variant = weights_variant(folder, part)
    if part in ("vae", "unet"):
        kind = AutoencoderKL if part == "vae" else UNet2DConditionModel
        return kind.from_pretrained(folder / part, use_safetensors=True, variant=variant, torch_dtype=dtype)
    kind = getattr(transformers, index[part][1])
    return kind.from_pretrained(folder / part, use_safetensors=True, variant=variant, dtype=dtype)


def weights_variant(folder: Path, part: str) -> str | None:
    """None for plain safetensors, `fp16` where only that variant is there.

    Raises:
        InpaintError: no safetensors; pickled weights (.bin, .ckpt) are refused by name.
    """
    stem, files = WEIGHT_STEMS[part], {p.name for p in (folder / part).glob("*")}
    for variant, infix in ((None, ""), ("fp16", r"\.fp16")):
        shard = r"-\d+-of-\d+"
        names = re.compile(rf"{stem}({infix}|{infix}{shard}|{shard}{infix})\.safetensors")
        if any(names.fullmatch(f) for f in files):
            return variant
    pickled = sorted(f for f in files if f.endswith((".bin", ".ckpt", ".pt", ".pth")))
    if pickled:
        raise InpaintError(
            f"{folder / part}: has only pickled weights ({', '.join(pickled)}), which are not opened, for a pickle can "
            "run any code. Convert a base you trust: `DiffusionPipeline.from_pretrained(OLD, use_safetensors=False)"
            ".save_pretrained(NEW)`"
        )
    raise InpaintError(f"{folder / part}: {stem}.safetensors (or its fp16 variant) is missing")
