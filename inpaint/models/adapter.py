"""Adapters: a LoRA, perhaps token embeddings, and a card; whether one fits a base is checked here and nowhere else."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import TypedDict

import torch
from torch import Tensor

from inpaint.errors import InpaintError
from inpaint.models.base import Base, BaseInfo
from inpaint.models.lora import load_lora
from inpaint.models.prompt_text import vectors_of
from inpaint.models.prompts import load_tokens

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What an adapter and its categories may be called: they stand in file names, URLs, prompts and logs."""
_PROMPT_FIELDS = {"token", "prompt", "category"}
_DATASET = {"n_repeats": int, "img_count": int, "tags": dict}
_MAX_ALPHA = 1e6
_HALVES = (".lora_A.weight", ".lora_B.weight")


class DatasetFolder(TypedDict):
    """What an adapter was trained on of one folder, under kohya's names."""

    n_repeats: int
    img_count: int
    tags: dict[str, int]
    """What stands between commas in captions -> how many have it; the most frequent ones."""


@dataclass(frozen=True, kw_only=True)
class AdapterCard:
    """What an adapter belongs to and how it was trained; `adapter.json` on disk."""

    base: str
    """Folder or hub id of the base it was trained on, or `toy`."""
    base_revision: str
    tokens: dict[str, str] = field(default_factory=dict)
    """Category -> its token; empty for an adapter without categories, which every prompt may use."""
    prompt_format: str = "{prompt}"
    """How prompts were written in training, from `{token}`, `{prompt}` and `{category}`."""
    resolution: int | list[int]
    """Side of the images it was trained on, in pixels, or their height and width."""
    rank: int
    alpha: float
    samples: int
    """Samples it was trained on."""
    manifest: str
    """Hash of the manifest it was trained on."""
    metrics: dict[str, float] = field(default_factory=dict)
    parity: dict[str, dict[str, float]] = field(default_factory=dict)
    """Export format -> how far its pictures are from ours, in [0, 1]: `largest` and `mean`."""
    dataset: dict[str, DatasetFolder] = field(default_factory=dict)
    """By the names of the folders; empty where it is not known."""
    files: dict[str, str] = field(default_factory=dict)
    """sha256 of each file."""

    def prompt(self, prompt: str, category: str | None = None) -> str:
        """The prompt as it was written in training; as given where the adapter has categories and none is named, or the
        category's token is in it already. Raises InpaintError for a category that it was not trained on."""
        if not self.tokens:
            return self.prompt_format.format(prompt=prompt)
        if category is None:
            return prompt
        if category not in self.tokens:
            raise InpaintError(f"category {category!r}: this adapter knows {', '.join(sorted(self.tokens))}")
        if category in self.called_in(prompt):
            return prompt
        return self.prompt_format.format(token=self.tokens[category], prompt=prompt, category=category)

    def called_in(self, prompt: str) -> list[str]:
        """The categories whose tokens a prompt holds, as words."""
        return [c for c, token in self.tokens.items() if re.search(rf"(?<!\w){re.escape(token)}(?!\w)", prompt)]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter in memory."""

    card: AdapterCard
    lora: dict[str, Tensor]
    """By name on disk: `unet.<module>.lora_A.weight` (rank x inputs), `lora_B` (outputs x rank), ..."""
    embeds: tuple[dict[str, Tensor], ...] = ()
    """Token -> vector (D), one mapping per text encoder; none where no token was learned. A token of several vectors
    has the further ones as `TOKEN_1`, `TOKEN_2`, ..., as in diffusers."""


def adapter_from(tensors: Mapping[str, Tensor], card: AdapterCard) -> Adapter:
    """An adapter from the trained parameters of a checkpoint, in fp16: half the size, and all that painting reads."""
    lora = {name: tensor.half().contiguous() for name, tensor in tensors.items() if ".lora_" in name}
    rows = [tensors[name].half() for name in ("tokens", "tokens_2") if name in tensors]
    tokens = list(card.tokens.values())
    embeds = tuple({token: row_ND[i].clone() for i, token in enumerate(tokens)} for row_ND in rows)
    return Adapter(card=card, lora=lora, embeds=embeds)


def apply_adapter(base: Base, adapter: Adapter) -> None:
    """Put an adapter on a base that has none, in place. Raises InpaintError where it does not belong to this base."""
    check_adapter(adapter, base.info)
    card = adapter.card
    load_lora(base, adapter.lora, rank=card.rank, alpha=card.alpha)
    if adapter.embeds:
        load_tokens(base, adapter.embeds)
    base.to(base.device)


def check_name(name: str) -> None:
    """Raises InpaintError for what no adapter or category may be called."""
    if not NAME.fullmatch(name) or set(name) == {"."}:
        raise InpaintError(f"{name[:80]!r}: give it a name of 1 to 64 letters, digits, `_`, `.` and `-`")


def check_card(card: AdapterCard, info: BaseInfo, *, max_rank: int | None = None) -> None:
    """Raises InpaintError: trained on another base, too large a rank, or a field that is no such thing, for a card's
    fields may hold anything that JSON can."""
    if card.base_revision != info.revision:
        raise InpaintError(
            f"the adapter was trained on base {card.base} at {str(card.base_revision)[:12]}, this is {info.name} at "
            f"{info.revision[:12]}: use that base, or train the adapter on this one"
        )
    if type(card.rank) is not int or card.rank < 1:
        raise InpaintError(f"rank {card.rank}: give a whole number of at least 1")
    if max_rank is not None and card.rank > max_rank:
        raise InpaintError(f"rank {card.rank}: up to {max_rank} is taken here; raise max_rank, or train a smaller one")
    if not isinstance(card.alpha, (int, float)) or not 0 < card.alpha < _MAX_ALPHA:
        raise InpaintError(f"alpha {card.alpha}: give a positive number")
    if not isinstance(card.tokens, dict) or not all(
        isinstance(t, str) and t and t.isprintable() for t in card.tokens.values()
    ):
        raise InpaintError(f"tokens {str(card.tokens)[:80]}: give category -> token")
    for category in card.tokens:
        check_name(category)
    _check_prompt_format(card)
    _check_dataset(card)


def check_adapter(adapter: Adapter, info: BaseInfo, *, max_rank: int | None = None) -> None:
    """Raises InpaintError for the first thing that does not belong to a base: the adapter's card, and every tensor's
    place, partner, shape and numbers are looked at."""
    check_card(adapter.card, info, max_rank=max_rank)
    if not adapter.lora:
        raise InpaintError("the adapter has no LoRA layer")
    for name, tensor in adapter.lora.items():
        layer, half = name[: -len(_HALVES[0])], name[-len(_HALVES[0]) :]
        if half not in _HALVES or layer not in info.layers:
            raise InpaintError(f"adapter tensor {name}: base {info.name} has no such layer; is it for another family?")
        other = layer + _HALVES[half == _HALVES[0]]
        if other not in adapter.lora:
            raise InpaintError(f"adapter tensor {name}: its other half {other} is missing")
        outputs, inputs = info.layers[layer]
        rank = adapter.card.rank
        _check_tensor(name, tensor, (rank, inputs) if half == _HALVES[0] else (outputs, rank))
    _check_embeds(adapter, info)


def _check_embeds(adapter: Adapter, info: BaseInfo) -> None:
    if not adapter.embeds:
        return
    if len(adapter.embeds) != len(info.text_widths):
        raise InpaintError(
            f"adapter: embeddings for {len(adapter.embeds)} text encoders, base {info.name} has {len(info.text_widths)}"
        )
    tokens = sorted(adapter.card.tokens.values())
    for embeds, width in zip(adapter.embeds, info.text_widths, strict=True):
        vectors = [name for token in tokens for name in vectors_of(token, embeds)]
        if sorted(vectors) != sorted(embeds):
            raise InpaintError(f"adapter: embeddings of {sorted(embeds)}, the card lists the tokens {tokens}")
        for name in vectors:
            _check_tensor(name, embeds[name], (width,))


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) not in (shape, (*shape, 1, 1)):  # convolutions of 1 x 1 keep their form on disk
        raise InpaintError(f"adapter tensor {name} is {tuple(tensor.shape)}, expected {shape}")
    if not torch.isfinite(tensor).all():
        raise InpaintError(f"adapter tensor {name} is not finite: the training diverged; do not use it")


def _check_prompt_format(card: AdapterCard) -> None:
    """Only plain fields: a format string can otherwise reach into the objects it is given."""
    text, fields = card.prompt_format, _PROMPT_FIELDS if card.tokens else {"prompt"}
    try:
        text.encode()  # half a surrogate pair could be written nowhere
        parts = list(Formatter().parse(text))
    except (ValueError, TypeError, AttributeError) as error:
        raise InpaintError(f"prompt_format {str(text)[:80]!r}: {error}") from error
    for _, name, spec, conversion in parts:
        if name is not None and (name not in fields or spec or conversion):
            known = ", ".join(f"{{{field}}}" for field in sorted(fields))
            raise InpaintError(f"prompt_format {text[:80]!r}: give only {known}")


def _check_dataset(card: AdapterCard) -> None:
    folders = card.dataset.values() if isinstance(card.dataset, dict) else [None]
    for folder in folders:
        if not isinstance(folder, dict) or {name: type(value) for name, value in folder.items()} != _DATASET:
            raise InpaintError(f"dataset {str(card.dataset)[:80]}: give folder -> {', '.join(_DATASET)}")
