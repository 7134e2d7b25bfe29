"""Whether an adapter may be served: it belongs to this base, fits its layers, and is no larger than allowed."""

import math
import re
from string import Formatter

from inpaint.errors import InpaintError
from inpaint.models.adapter import Adapter, AdapterCard
from inpaint.models.outline import BaseOutline

ADAPTER_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What an adapter's folder and its categories may be called: they stand in URLs, prompts and logs."""
_PROMPT_FIELDS = {"token", "prompt", "category"}
_MATRICES = (".lora_A.weight", ".lora_B.weight")


def check_name(name: str) -> None:
    """Raises InpaintError for what is no name."""
    if not ADAPTER_NAME.fullmatch(name) or set(name) == {"."}:
        raise InpaintError(f"{name[:80]!r}: give it a name of 1 to 64 letters, digits, `_`, `.` and `-`")


def check_card(card: AdapterCard, outline: BaseOutline, max_rank: int) -> None:
    """What the card alone shows. Raises InpaintError with the reason and the way out."""
    if card.base_revision != outline.revision:
        raise InpaintError(
            f"trained on base {card.base} at {str(card.base_revision)[:12]}, served is {outline.revision[:12]}: "
            "serve that base, or train the adapter on this one"
        )
    if type(card.rank) is not int or not 1 <= card.rank <= max_rank:
        raise InpaintError(
            f"rank {card.rank}: this service takes 1 to {max_rank}; raise max_rank, or train a smaller one"
        )
    if not isinstance(card.alpha, (int, float)) or not math.isfinite(card.alpha):
        raise InpaintError(f"alpha {card.alpha}: give a finite number")
    strings = isinstance(card.tokens, dict) and all(isinstance(x, str) for pair in card.tokens.items() for x in pair)
    if not strings or not card.tokens:
        raise InpaintError(f"tokens {str(card.tokens)[:80]}: give category -> token")
    for category in card.tokens:
        check_name(category)
    _check_prompt_format(card.prompt_format)


def check_tensors(adapter: Adapter, outline: BaseOutline) -> None:
    """Whether every matrix has a place in the base, with its partner and of the right shape. Raises InpaintError."""
    rank = adapter.card.rank
    layers: dict[str, set[str]] = {}
    for name, tensor in adapter.lora.items():
        layer, kind = name[: -len(_MATRICES[0])], name[-len(_MATRICES[0]) :]
        if kind not in _MATRICES or layer not in outline.places:
            raise InpaintError(f"layer {name}: this base has no such place; it has {len(outline.places)} others")
        outputs, inputs = outline.places[layer]
        expected = (rank, inputs) if kind == _MATRICES[0] else (outputs, rank)
        if tuple(tensor.shape) != expected:
            raise InpaintError(f"layer {name}: {tuple(tensor.shape)}, expected {expected}")
        layers.setdefault(layer, set()).add(kind)
    alone = next((layer for layer, kinds in layers.items() if len(kinds) == 1), None)
    if alone is not None or not layers:
        raise InpaintError(f"layer {alone}: lora_A and lora_B must both be there" if alone else "it has no LoRA layer")
    _check_embeddings(adapter, outline)


def _check_embeddings(adapter: Adapter, outline: BaseOutline) -> None:
    widths, tokens = outline.text_widths, set(adapter.card.tokens.values())
    if len(adapter.embeds) != len(widths):
        raise InpaintError(f"embeddings for {len(adapter.embeds)} text encoder(s), this base has {len(widths)}")
    for embeds, width in zip(adapter.embeds, widths, strict=True):
        if set(embeds) != tokens:
            raise InpaintError(f"embeddings of {sorted(embeds)}, the card lists the tokens {sorted(tokens)}")
        for token, vector in embeds.items():
            if tuple(vector.shape) != (width,):
                raise InpaintError(f"embedding of {token}: {tuple(vector.shape)}, expected ({width},)")


def _check_prompt_format(text: str) -> None:
    """Only plain fields: a format string can otherwise reach into the objects it is given."""
    try:
        parts = list(Formatter().parse(text))
    except (ValueError, TypeError) as error:
        raise InpaintError(f"prompt_format {str(text)[:80]!r}: {error}") from error
    for _, name, spec, conversion in parts:
        if name is not None and (name not in _PROMPT_FIELDS or spec or conversion):
            raise InpaintError(f"prompt_format {text[:80]!r}: give only {{token}}, {{prompt}} and {{category}}")
