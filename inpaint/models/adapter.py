"""Adapters on disk: one folder with a LoRA, its tokens' embeddings and a card; safetensors and JSON only.

`pytorch_lora_weights.safetensors` and `learned_embeds.safetensors` (`learned_embeds_2` for a second text encoder) are
what diffusers' `load_lora_weights` and `load_textual_inversion` read; `adapter.json` says what they belong to.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from inpaint.errors import InpaintError
from inpaint.models.base import Base
from inpaint.models.lora import load_lora
from inpaint.models.tokens import load_tokens

LORA_FILE = "pytorch_lora_weights.safetensors"
EMBEDS_FILES = ("learned_embeds.safetensors", "learned_embeds_2.safetensors")
CARD_FILE = "adapter.json"


@dataclass(frozen=True, kw_only=True)
class AdapterCard:
    """`adapter.json`."""

    base: str
    """Folder or hub id of the base it was trained on, or `toy`."""
    base_revision: str
    tokens: dict[str, str]
    """Category -> its token."""
    prompt_format: str
    """How prompts were written in training, from `{token}` and `{prompt}`."""
    resolution: int
    rank: int
    alpha: float
    samples: int
    """Samples it was trained on."""
    manifest: str
    """Hash of the manifest it was trained on."""
    metrics: dict[str, float] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """sha256 of each file."""

    def prompt(self, prompt: str, category: str) -> str:
        """The prompt as it was written in training.

        Raises:
            InpaintError: the adapter was not trained on this category.
        """
        if category not in self.tokens:
            raise InpaintError(f"category {category!r}: this adapter knows {', '.join(sorted(self.tokens))}")
        return self.prompt_format.format(token=self.tokens[category], prompt=prompt, category=category)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter in memory."""

    card: AdapterCard
    lora: dict[str, Tensor]
    embeds: tuple[dict[str, Tensor], ...]
    """Token -> vector (D), one mapping per text encoder."""


def save_adapter(folder: str | Path, adapter: Adapter) -> Path:
    """Write the folder, `adapter.json` last, with the sha256 of the files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # diffusers reads rank and alpha from this metadata; without it alpha = rank is taken.
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(_lora_metadata(adapter))}
    files = {LORA_FILE: safetensors.torch.save(adapter.lora, metadata=metadata)}
    for name, embeds in zip(EMBEDS_FILES, adapter.embeds, strict=False):
        files[name] = safetensors.torch.save(embeds, metadata={"format": "pt"})
    for name, data in files.items():
        (folder / name).write_bytes(data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    card = {**asdict(adapter.card), "files": hashes}
    (folder / CARD_FILE).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return folder


def parse_card(data: bytes, where: str | Path) -> AdapterCard:
    """The card from the bytes of `adapter.json`; `where` is what errors call it. Raises InpaintError."""
    try:
        return AdapterCard(**json.loads(data))
    except (ValueError, TypeError) as error:
        raise InpaintError(f"{where}: not a card of this version ({error})") from error


def load_adapter(folder: str | Path) -> Adapter:
    """Read and verify an adapter folder.

    Raises:
        InpaintError: no such folder, a file is missing or does not match its sha256, or a tensor is not finite.
    """
    folder = Path(folder)
    path = folder / CARD_FILE
    if not path.is_file():
        raise InpaintError(f"{folder}: no {CARD_FILE}, so not an adapter of ours; train one with train_category_lora")
    card = parse_card(path.read_bytes(), path)
    known = (LORA_FILE, *EMBEDS_FILES)
    strange = sorted(set(card.files) - set(known))
    if strange:
        raise InpaintError(f"{path}: lists {strange[0]}; only safetensors files are read: {', '.join(known)}")
    tensors = {name: _read(folder / name, digest) for name, digest in card.files.items()}
    if not {LORA_FILE, EMBEDS_FILES[0]} <= tensors.keys():
        raise InpaintError(f"{path}: lists {sorted(tensors)}, but not {LORA_FILE} and {EMBEDS_FILES[0]}")
    embeds = tuple(tensors[name] for name in EMBEDS_FILES if name in tensors)
    return Adapter(card=card, lora=tensors[LORA_FILE], embeds=embeds)


def apply_adapter(base: Base, adapter: Adapter, *, scale: float = 1.0) -> None:
    """Put an adapter on a base that has none, in place; `scale` 0 leaves only its tokens.

    Raises:
        InpaintError: it was trained on another base, or does not fit this one.
    """
    card = adapter.card
    if card.base_revision != base.revision:
        raise InpaintError(
            f"the adapter was trained on base {card.base} at {card.base_revision[:12]}, this is {base.name} at "
            f"{base.revision[:12]}: load that base, or train the adapter on this one"
        )
    load_lora(base, adapter.lora, rank=card.rank, alpha=card.alpha, scale=scale)
    load_tokens(base, {token: [e[token] for e in adapter.embeds] for token in adapter.embeds[0]})
    for encoder in base.text_encoders:
        encoder.to(base.device)
    base.unet.to(base.device)


def _read(path: Path, digest: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise InpaintError(f"{path} is missing: copy the whole adapter folder")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise InpaintError(f"{path}: its bytes do not match the sha256 in {CARD_FILE}: copy it again")
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise InpaintError(f"{path}: not a safetensors file ({error})") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InpaintError(f"{path}: {name} is not finite: the training diverged; do not use it")
    return tensors


def _lora_metadata(adapter: Adapter) -> dict[str, object]:
    """What diffusers' `save_lora_weights` writes, by prefix."""
    prefixes = {name.split(".", 1)[0] for name in adapter.lora}
    card = adapter.card
    metadata: dict[str, object] = {}
    for prefix in sorted(prefixes):
        targets = sorted({_module(name) for name in adapter.lora if name.startswith(f"{prefix}.")})
        metadata[f"{prefix}.r"] = card.rank
        metadata[f"{prefix}.lora_alpha"] = card.alpha
        metadata[f"{prefix}.target_modules"] = targets
    return metadata


def _module(name: str) -> str:
    """`unet.down.0.to_q.lora_A.weight` -> `down.0.to_q`."""
    return name.split(".", 1)[1].removeprefix("text_model.").rsplit(".lora_", 1)[0]


def adapter_from(tensors: Mapping[str, Tensor], card: AdapterCard) -> Adapter:
    """An adapter from the trained parameters of a checkpoint, in fp16: half the size, and all that painting reads."""
    lora = {name: tensor.half().contiguous() for name, tensor in tensors.items() if ".lora_" in name}
    rows = [tensors[name].half() for name in ("tokens", "tokens_2") if name in tensors]
    tokens = list(card.tokens.values())
    embeds = tuple({token: row_ND[i].clone() for i, token in enumerate(tokens)} for row_ND in rows)
    return Adapter(card=card, lora=lora, embeds=embeds)
