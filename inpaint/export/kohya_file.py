"""Adapters as kohya's trainer writes them, for A1111, Forge and ComfyUI: one file with the LoRA, one per token.

`NAME.safetensors` belongs into their LoRA folder, `embeddings/TOKEN.safetensors` into that of embeddings; a token is
called by its file's name. Sources: kohya-ss/sd-scripts, `networks/lora.py` and `train_network.py` for the metadata,
`train_textual_inversion.py` and its SDXL sibling for embeddings; Stability's modelspec 1.0.1.

Guarantees: `kohya.read_adapter_file` reads the same LoRA back, bit for bit. Not covered: how prompts were written in
training, which such a file only hints at.
"""

import hashlib
import json
from pathlib import Path, PurePath

import safetensors.torch
import torch
from torch import Tensor

from inpaint.errors import InpaintError
from inpaint.export.kohya_names import SUFFIX, KohyaNames
from inpaint.models.adapter import NAME, Adapter, AdapterCard
from inpaint.models.base import BaseInfo
from inpaint.models.prompt_text import vectors_of

EMBEDDINGS = "embeddings"
EMBEDDING_KEYS = {1: ("emb_params",), 2: ("clip_l", "clip_g")}
"""By the number of text encoders: what a token's file calls what each has of it."""
_HALVES = {"lora_A": "lora_down", "lora_B": "lora_up"}
_LEGACY_START, _LEGACY_BYTES = 0x100000, 0x10000


def save_kohya(folder: str | Path, adapter: Adapter, info: BaseInfo, name: str) -> Path:
    """Write the files into a folder. Raises InpaintError, as `kohya_files`."""
    for path, data in kohya_files(adapter, info, name).items():
        file = Path(folder, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return Path(folder)


def kohya_files(adapter: Adapter, info: BaseInfo, name: str) -> dict[str, bytes]:
    """By their paths. Raises InpaintError for a learned token that cannot be a file's name.

    Args:
        info: of the adapter's base, which it fits.
        name: what the LoRA is called in prompts.
    """
    names = KohyaNames(info)
    tensors: dict[str, Tensor] = {}
    for path, tensor in adapter.lora.items():
        layer, _, half = path.removesuffix(".weight").rpartition(".")
        tensors[f"{names.own(layer)}.{_HALVES[half]}.weight"] = tensor.contiguous()
        tensors[f"{names.own(layer)}.alpha"] = torch.tensor(float(adapter.card.alpha))
    files = {f"{name}{SUFFIX}": _with_hashes(tensors, _metadata(adapter.card, info, name))}
    if adapter.embeds:
        files |= {f"{EMBEDDINGS}/{token}{SUFFIX}": data for token, data in _embeddings(adapter).items()}
    return files


def _metadata(card: AdapterCard, info: BaseInfo, name: str) -> dict[str, str]:
    """What is known of it under the names that others look for; all are texts."""
    height, width = card.resolution if isinstance(card.resolution, list) else [card.resolution] * 2
    folders = card.dataset
    told: dict[str, object] = {
        "ss_output_name": name,
        "ss_v2": False,
        "ss_base_model_version": "sdxl_base_v1-0" if info.is_xl else "sd_v1",
        "ss_sd_model_name": PurePath(card.base).name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": card.rank,
        "ss_network_alpha": float(card.alpha),
        "ss_network_args": "{}",
        "ss_resolution": (width, height),
        "ss_num_train_images": sum(folder["n_repeats"] * folder["img_count"] for folder in folders.values()),
        "ss_dataset_dirs": json.dumps(
            {path: {key: folder[key] for key in ("n_repeats", "img_count")} for path, folder in folders.items()}
        ),
        "ss_tag_frequency": json.dumps({path: folder["tags"] for path, folder in folders.items()}),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"stable-diffusion-{'xl-v1-base' if info.is_xl else 'v1'}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models" if info.is_xl else "diffusers",
        "modelspec.title": name,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.usage_hint": f"<lora:{name}:1>, prompts are written {card.prompt_format}",
    }
    if len(card.tokens) == 1:
        (told["modelspec.trigger_phrase"],) = card.tokens.values()
    return {key: str(value) for key, value in told.items()}


def _with_hashes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """The file; its hashes are those by which A1111 and its extensions know it, whatever is written into its header."""
    # The legacy one is that of a file with the training's own metadata alone.
    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    data = safetensors.torch.save(tensors, training)
    content = hashlib.sha256(memoryview(data)[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    legacy = hashlib.sha256(data[_LEGACY_START : _LEGACY_START + _LEGACY_BYTES]).hexdigest()[:8]
    hashes = {"sshs_model_hash": content, "sshs_legacy_hash": legacy, "modelspec.hash_sha256": f"0x{content}"}
    return safetensors.torch.save(tensors, metadata | hashes)


def _embeddings(adapter: Adapter) -> dict[str, bytes]:
    """By token: `EMBEDDING_KEYS`, N x D each."""
    keys, files = EMBEDDING_KEYS[len(adapter.embeds)], {}
    for token in adapter.card.tokens.values():
        if not NAME.fullmatch(token):
            raise InpaintError(f"token {token[:80]!r}: cannot be the name of a file, by which A1111 would call it")
        vectors = [torch.stack([embeds[vector] for vector in vectors_of(token, embeds)]) for embeds in adapter.embeds]
        files[token] = safetensors.torch.save(dict(zip(keys, vectors, strict=True)))
    return files
