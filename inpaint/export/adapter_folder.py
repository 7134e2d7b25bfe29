"""Adapters on disk: one folder with a LoRA, its tokens' embeddings if any, and a card; safetensors and JSON only.

`pytorch_lora_weights.safetensors` and `learned_embeds.safetensors` (`learned_embeds_2` for a second text encoder) are
what diffusers' `load_lora_weights` and `load_textual_inversion` read; `adapter.json` says what they belong to.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from inpaint.data.storage import read_file
from inpaint.errors import InpaintError
from inpaint.models.adapter import Adapter, AdapterCard

LORA_FILE = "pytorch_lora_weights.safetensors"
EMBEDS_FILES = ("learned_embeds.safetensors", "learned_embeds_2.safetensors")
CARD_FILE = "adapter.json"


class AdapterIncomplete(InpaintError):
    """An adapter's folder does not hold what its card lists: it is still being copied, or a file is damaged."""


def save_adapter(folder: str | Path, adapter: Adapter) -> Path:
    """Write the folder, `adapter.json` last."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in adapter_files(adapter).items():
        (folder / name).write_bytes(data)
    return folder


def adapter_files(adapter: Adapter, *, repeatable: bool = False) -> dict[str, bytes]:
    """The folder's files, `adapter.json` last, with the sha256 of the others. Args: repeatable: the same bytes each
    time, for which the LoRA goes without metadata: safetensors writes these in any order."""
    # diffusers reads rank and alpha from this metadata; without it alpha = rank is taken.
    described = {"format": "pt", "lora_adapter_metadata": json.dumps(_lora_metadata(adapter))}
    metadata = None if repeatable else described
    files = {LORA_FILE: safetensors.torch.save(adapter.lora, metadata=metadata)}
    for name, embeds in zip(EMBEDS_FILES, adapter.embeds, strict=False):
        files[name] = safetensors.torch.save(embeds, metadata={"format": "pt"})
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    card = {**asdict(adapter.card), "files": hashes}
    return {**files, CARD_FILE: (json.dumps(card, indent=1) + "\n").encode()}


def parse_card(data: bytes, where: str | Path) -> AdapterCard:
    """The card from the bytes of `adapter.json`; `where` is what errors call it. Raises InpaintError."""
    try:
        return AdapterCard(**json.loads(data))
    except (ValueError, TypeError, RecursionError) as error:
        raise InpaintError(f"{where}: not a card of this version ({error})") from error


def load_adapter(where: str | Path) -> Adapter:
    """Read and verify the adapter folder at a path or an object-store URL. Raises InpaintError, as `read_adapter`."""
    return read_adapter(partial(read_file, where), where)


def read_adapter(read: Callable[[str], bytes | None], where: str | Path) -> Adapter:
    """Verify an adapter. Whether it fits a base is for `inpaint.models.adapter.check_adapter` to say.

    Args:
        read: the bytes of one file of its folder; None where there is no such file.
        where: what errors call the folder.

    Raises:
        AdapterIncomplete: a file is missing or does not match its sha256.
        InpaintError: no such folder, or no adapter.
    """
    data = read(CARD_FILE)
    if data is None:
        raise InpaintError(f"{where}: no {CARD_FILE}, so not an adapter of ours; train one with train_category_lora")
    card = parse_card(data, f"{where}/{CARD_FILE}")
    known = (LORA_FILE, *EMBEDS_FILES)
    strange = sorted(set(card.files) - set(known)) if isinstance(card.files, dict) else [str(card.files)]
    if strange:
        raise InpaintError(f"{where}: {CARD_FILE} lists {strange[0][:80]}; only {', '.join(known)} are read")
    if LORA_FILE not in card.files:
        raise InpaintError(f"{where}: {CARD_FILE} lists {sorted(card.files)}, but not {LORA_FILE}")
    tensors = {name: _tensors(read(name), digest, f"{where}/{name}") for name, digest in card.files.items()}
    embeds = tuple(tensors[name] for name in EMBEDS_FILES if name in tensors)
    return Adapter(card=card, lora=tensors[LORA_FILE], embeds=embeds)


def _tensors(data: bytes | None, digest: str, where: str) -> dict[str, Tensor]:
    if data is None:
        raise AdapterIncomplete(f"{where} is missing: copy the whole adapter folder")
    if hashlib.sha256(data).hexdigest() != digest:
        raise AdapterIncomplete(f"{where}: its bytes do not match the sha256 in {CARD_FILE}: copy it again")
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise InpaintError(f"{where}: not a safetensors file ({error})") from error


def _lora_metadata(adapter: Adapter) -> dict[str, object]:
    """What diffusers' `save_lora_weights` writes, by prefix."""
    targets: dict[str, set[str]] = {}
    for name in adapter.lora:
        prefix, _, path = name.rpartition(".lora_")[0].partition(".")
        targets.setdefault(prefix, set()).add(path.removeprefix("text_model."))
    metadata: dict[str, object] = {}
    for prefix, paths in sorted(targets.items()):
        metadata[f"{prefix}.r"] = adapter.card.rank
        metadata[f"{prefix}.lora_alpha"] = adapter.card.alpha
        metadata[f"{prefix}.target_modules"] = sorted(paths)
    return metadata
