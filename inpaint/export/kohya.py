"""Adapters of others, one `.safetensors` file each: kohya's, as Civitai has them, and diffusers' without our card.

Covered: LoRA (Hu et al. 2021) on linear layers and convolutions of 1 x 1 of Stable Diffusion 1.5 and SDXL, under
diffusers' and, for SDXL, the original U-Net's names; each layer's own rank and alpha, exactly. Refused by name: LyCORIS
(LoHa, LoKr, DoRA, ...), LoCon's convolutions, other families, tensors of any other kind. Sources: kohya's
`networks/lora.py` for the names, A1111's and Stability's modelspec 1.0.1 for the metadata.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from inpaint.errors import InpaintError
from inpaint.export.kohya_names import SUFFIX, KohyaNames
from inpaint.models.adapter import Adapter, AdapterCard
from inpaint.models.base import BaseInfo

_FOREIGN = {
    "model.diffusion_model.": "a whole checkpoint; give it as the base", "hada_": "LyCORIS LoHa",
    "lokr_": "LyCORIS LoKr", "dora_scale": "DoRA", "lora_mid": "LyCORIS LoCon", "oft_": "OFT", "ia3": "IA3",
    "bundle_emb": "a LoRA with embeddings in it", ".diff": "weights beside a LoRA", "lora_magnitude_vector": "DoRA",
    "emb_params": "an embedding, not a LoRA", "clip_l": "an embedding, not a LoRA",
}  # fmt: skip
"""Part of a tensor's name -> what a file with such ones is."""
_SD15, _SDXL = "Stable Diffusion 1.5", "SDXL"
_FAMILIES = {
    "sd_v1": _SD15, "stable-diffusion-v1": _SD15, "sdxl": _SDXL, "stable-diffusion-xl": _SDXL,
    "sd_v2": "Stable Diffusion 2", "stable-diffusion-v2": "Stable Diffusion 2", "sd3": "Stable Diffusion 3",
    "stable-diffusion-3": "Stable Diffusion 3", "flux": "Flux",
}  # fmt: skip
"""Beginning of a family's name in the metadata -> the family. Of others, layers and shapes tell."""
_HALVES = {"lora_down": "down", "lora_up": "up", "lora_A": "down", "lora_B": "up", "lora.down": "down", "lora.up": "up"}
_TENSOR = re.compile(rf"(.+)\.(?:({'|'.join(map(re.escape, _HALVES))})\.weight|alpha)")
_LONGEST_TAG = 100


@dataclass
class _Layer:
    """What a file has of one layer."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None


def read_adapter_file(data: bytes, name: str, info: BaseInfo) -> Adapter:
    """A file's bytes -> the adapter `name` of a base. Its tag, if the metadata tell one, is the token of a category
    that is called like the adapter. Whether it fits is for `inpaint.models.adapter.check_adapter` to say. Raises
    InpaintError: no safetensors, or what is said above to be refused."""
    where = f"{name}{SUFFIX}"
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise InpaintError(f"{where}: not a safetensors file, or not all of it ({error})") from error
    metadata = _metadata(data)
    _check_family(metadata, info, where)
    layers = _layers(tensors, metadata, info, where)
    lora, rank, alpha = _uniform(layers, where)
    tag = _tag(metadata)
    card = AdapterCard(
        base=info.name,
        base_revision=info.revision,
        tokens={name: tag} if tag else {},
        prompt_format="{token}, {prompt}" if tag else "{prompt}",
        resolution=info.default_size,
        rank=rank,
        alpha=alpha,
        samples=0,
        manifest="",
        files={where: hashlib.sha256(data).hexdigest()},
    )
    return Adapter(card=card, lora=lora)


def _metadata(data: bytes) -> dict[str, str]:
    """Of a safetensors file that can be read."""
    size = int.from_bytes(data[:8], "little")
    found = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    return {str(key): str(value) for key, value in found.items()}


def _check_family(metadata: Mapping[str, str], info: BaseInfo, where: str) -> None:
    """Raises InpaintError where the metadata name another family than the base's."""
    named = metadata.get("ss_base_model_version") or metadata.get("modelspec.architecture") or ""
    family = next((family for start, family in _FAMILIES.items() if named.lower().startswith(start)), None)
    own = _SDXL if info.is_xl else _SD15
    if family not in (None, own):
        raise InpaintError(f"{where}: made for {family} ({named[:60]}), and base {info.name} is of the family of {own}")


def _layers(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], info: BaseInfo, where: str
) -> dict[str, _Layer]:
    """By our name of the layer."""
    names = KohyaNames(info)
    known = {alias: layer for layer in info.layers for alias in names.all(layer)}
    found: dict[str, _Layer] = {}
    for name, tensor in tensors.items():
        foreign = next((what for part, what in _FOREIGN.items() if part in name), None)
        if foreign:
            raise InpaintError(f"{where}: it is {foreign} (tensor {name[:100]}); only plain LoRA is used")
        match = _TENSOR.fullmatch(name)
        if match is None or match[1] not in known:
            is_convolution = tensor.ndim == 4 and tensor.shape[2:] != (1, 1)
            what = "LoCon, which has convolutions, too" if is_convolution else "for another family, or no plain LoRA"
            raise InpaintError(f"{where}: tensor {name[:100]} is of no layer that a LoRA changes here: it is {what}")
        layer = found.setdefault(known[match[1]], _Layer())
        if match[2] is None:
            layer.alpha = _number(tensor, name, where)
        else:
            setattr(layer, _HALVES[match[2]], tensor)
    told = _told_by_diffusers(metadata)
    for name, layer in found.items():
        if layer.alpha is None:
            layer.alpha = _alpha(name, told)
    return found


def _number(tensor: Tensor, name: str, where: str) -> float:
    value = float(tensor) if tensor.numel() == 1 else math.nan
    if not math.isfinite(value):
        raise InpaintError(f"{where}: tensor {name[:100]} is no finite number: the training diverged; do not use it")
    return value


def _told_by_diffusers(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """Ranks and alphas as diffusers writes them: one per model, with exceptions by path."""
    try:
        values = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _alpha(layer: str, told: Mapping[str, Any]) -> float | None:
    """None where it is not told: then it is the rank."""
    prefix, _, path = layer.partition(".")
    value, exceptions = told.get(f"{prefix}.lora_alpha"), told.get(f"{prefix}.alpha_pattern")
    for pattern, other in exceptions.items() if isinstance(exceptions, dict) else ():
        if f".{path}".endswith(f".{pattern}"):
            value = other
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _uniform(layers: Mapping[str, _Layer], where: str) -> tuple[dict[str, Tensor], int, float]:
    """The LoRA with one rank and one alpha, and these: each layer's own scale goes into its B, and what it lacks of the
    largest rank is zeros. As it is where all layers agree."""
    complete: dict[str, tuple[Tensor, Tensor, float]] = {}
    for name, layer in layers.items():
        if layer.down is None or layer.up is None:
            raise InpaintError(f"{where}: layer {name} has no {'lora_down' if layer.down is None else 'lora_up'}")
        if layer.down.ndim not in (2, 4) or layer.up.ndim != layer.down.ndim or not len(layer.down):
            shapes = f"{tuple(layer.down.shape)} and {tuple(layer.up.shape)}"
            raise InpaintError(f"{where}: layer {name} is {shapes}, which is no LoRA")
        if layer.up.shape[1] != len(layer.down):
            raise InpaintError(f"{where}: layer {name} has the ranks {len(layer.down)} and {layer.up.shape[1]}")
        complete[name] = layer.down, layer.up, len(layer.down) if layer.alpha is None else layer.alpha
    if not complete:
        raise InpaintError(f"{where}: no LoRA layer in it")
    kinds = {(len(down), alpha) for down, _, alpha in complete.values()}
    rank = max(rank for rank, _ in kinds)
    lora: dict[str, Tensor] = {}
    for name, (down, up, alpha) in complete.items():
        if len(kinds) > 1:
            missing = rank - len(down)
            down = torch.cat([down, down.new_zeros(missing, *down.shape[1:])])
            up = up.float() * (alpha / (rank - missing))
            up = torch.cat([up, up.new_zeros(len(up), missing, *up.shape[2:])], dim=1)
        lora |= {f"{name}.lora_A.weight": down.contiguous(), f"{name}.lora_B.weight": up.contiguous()}
    return lora, rank, float(rank if len(kinds) > 1 else next(iter(kinds))[1])


def _tag(metadata: Mapping[str, str]) -> str:
    """The words that call what was learned: the trigger phrase, else the tag that all pictures had (the first of
    several); empty where there is none."""
    phrase = metadata.get("modelspec.trigger_phrase", "").strip()
    if not phrase:
        try:
            folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
            sizes = json.loads(metadata.get("ss_dataset_dirs", "{}"))
            counts: Counter[str] = Counter()
            for tags in folders.values():
                counts.update({tag.strip(): int(count) for tag, count in tags.items()})
            pictures = sum(int(about["img_count"]) for about in sizes.values())
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
            return ""
        phrase, most = max(counts.items(), key=lambda item: item[1], default=("", 0))
        if most < pictures:
            return ""
    return phrase if phrase.isprintable() and len(phrase) <= _LONGEST_TAG else ""
