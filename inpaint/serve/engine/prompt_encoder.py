"""Text of many rows in one call, each with the tokens and the text encoder updates of its own adapters.

The same token may mean another vector in another adapter, so added tokens have no place in a shared vocabulary.
Instead one vocabulary has a few reserved tokens, and each row says what they mean for it. Shapes: B prompts, L tokens,
D width, T reserved tokens used.
"""

import copy
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn

from inpaint.models.base import Base
from inpaint.models.low_rank import Uses
from inpaint.models.prompts import Conditioning, tokenize
from inpaint.serve.engine.slots import AdapterSlots

_MARK = "\ue000"
"""A private-use character: reserved tokens are written with it, and it is taken out of prompts."""
RESERVED = 77
"""Different added tokens in one prompt: CLIP's window, so that no more than these can be within it."""


@dataclass(frozen=True)
class Prompt:
    """A text to encode."""

    prompt: str
    adapters: tuple[tuple[str, float], ...] = ()
    """(digest, weight), all resident."""
    is_negative: bool = False


class RowTokens(nn.Module):
    """A frozen embedding table, and beyond its end each row's own vectors."""

    def __init__(self, frozen: nn.Embedding) -> None:
        super().__init__()
        self.frozen = frozen
        self.rows_BTD: Tensor | None = None

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Token ids -> B x L x D."""
        if self.rows_BTD is None:
            return self.frozen(ids_BL)
        known = self.frozen.num_embeddings
        old_BLD = self.frozen(ids_BL.clamp(max=known - 1))
        rows_B1 = torch.arange(len(ids_BL), device=ids_BL.device)[:, None]
        new_BLD = self.rows_BTD[rows_B1, (ids_BL - known).clamp(min=0)].to(old_BLD.dtype)
        return torch.where((ids_BL >= known)[..., None], new_BLD, old_BLD)


class PromptEncoder:
    """Encodes texts for the engine's loop, and remembers the last ones."""

    def __init__(self, base: Base, bank: AdapterSlots, *, cached: int) -> None:
        """Replaces the text encoders' token embeddings, in place. Args: cached: texts remembered."""
        self.base, self.bank, self.cached = base, bank, cached
        self._known: OrderedDict[Prompt, Conditioning] = OrderedDict()
        self._tokenizers = [copy.deepcopy(tokenizer) for tokenizer in base.tokenizers]
        self._tables: list[RowTokens] = []
        for tokenizer, encoder in zip(self._tokenizers, base.text_encoders, strict=True):
            reserved = [AddedToken(f"{_MARK}{i}{_MARK}", normalized=False) for i in range(RESERVED)]
            tokenizer.add_tokens(reserved)
            table = RowTokens(encoder.get_input_embeddings())
            encoder.set_input_embeddings(table)
            self._tables.append(table)
        self._prefixes = ["text_encoder", "text_encoder_2"][: len(self._tables)]

    def encode(self, wishes: Sequence[Prompt]) -> list[Conditioning]:
        """One row of conditioning for each; those not remembered are encoded in one call. Without gradients."""
        fresh = [wish for wish in dict.fromkeys(wishes) if wish not in self._known]
        found = {wish: self._known[wish] for wish in wishes if wish in self._known}
        if fresh:
            # Rows with adapters first: the others then cost nothing more.
            fresh.sort(key=lambda wish: not wish.adapters)
            found.update(zip(fresh, self._encoded(fresh), strict=True))
        for wish in wishes:
            self._known[wish] = found[wish]
            self._known.move_to_end(wish)
        while len(self._known) > self.cached:
            self._known.popitem(last=False)
        return [found[wish] for wish in wishes]

    def is_known(self, wish: Prompt) -> bool:
        """Whether encoding it costs nothing."""
        return wish in self._known

    @torch.no_grad()
    def _encoded(self, wishes: list[Prompt]) -> list[Conditioning]:
        uses_B: list[Uses] = [tuple((self.bank.slot(d), w) for d, w in wish.adapters) for wish in wishes]
        hidden: list[Tensor] = []
        pooled_BP: Tensor | None = None
        for index, (tokenizer, encoder) in enumerate(zip(self._tokenizers, self.base.text_encoders, strict=True)):
            written = [self._write(tokenizer, wish, index) for wish in wishes]
            ids_BL = tokenize(tokenizer, [text for text, _ in written]).to(self.base.device)
            self._tables[index].rows_BTD = self._stacked([vectors for _, vectors in written])
            self.bank.install(self._prefixes[index], self.bank.gather(self._prefixes[index], uses_B))
            output = encoder(ids_BL, output_hidden_states=self.base.info.is_xl)
            hidden.append(output.hidden_states[-2] if self.base.info.is_xl else output.last_hidden_state)
            pooled_BP = output.text_embeds if self.base.info.is_xl and index == 1 else None
        embeds_BLD = torch.cat(hidden, dim=-1)
        rows = Conditioning(embeds_BLD, pooled_BP)
        return [self._one(rows, i, wish) for i, wish in enumerate(wishes)]

    def _one(self, rows: Conditioning, index: int, wish: Prompt) -> Conditioning:
        """A row of its own memory; zeros for an empty negative prompt where the base says so (SDXL)."""
        row = rows[index : index + 1]
        keep = 0.0 if wish.is_negative and not wish.prompt and self.base.zero_empty_negative else 1.0
        return Conditioning(row.embeds_BLD * keep, None if row.pooled_BP is None else row.pooled_BP * keep)

    def _write(self, tokenizer: Any, wish: Prompt, encoder: int) -> tuple[str, list[Tensor]]:
        """The prompt with the adapters' tokens replaced by reserved ones, and what those mean (each D).

        As `tokenizer.add_tokens` would: found in the normalised text, the longest first. Reserved tokens keep the order
        of the adapters' own, for SDXL pools at the highest token. Of a token in two adapters the first one's is used.
        """
        normalise = tokenizer.backend_tokenizer.normalizer.normalize_str
        prompt = wish.prompt.replace(_MARK, " ")
        vectors: dict[str, Tensor] = {}
        for digest, _ in wish.adapters:
            for token, vector in self.bank.tokens(digest)[encoder].items():
                vectors.setdefault(token, vector)
        if not vectors:
            return prompt, []
        # diffusers expands a token of several vectors only where the tokenizer's normaliser leaves its name alone.
        plain = [token for token in vectors if normalise(token) == token]
        if plain:
            prompt = _any_of(plain).sub(lambda match: _series(match[0], vectors), prompt)
        meant = {normalise(token): token for token in reversed(vectors)}
        pattern, text = _any_of(meant), normalise(prompt)
        # What lies behind more tokens than the window has is cut off anyway.
        found: set[str] = set()
        for match in pattern.finditer(text):
            if len(found | {meant[match[0]]}) > RESERVED:
                text = text[: match.start()]
                break
            found.add(meant[match[0]])
        used = [token for token in vectors if token in found]
        numbers = {token: number for number, token in enumerate(used)}
        text = pattern.sub(lambda match: f"{_MARK}{numbers[meant[match[0]]]}{_MARK}", text)
        return text, [vectors[token] for token in used]

    def _stacked(self, rows: list[list[Tensor]]) -> Tensor | None:
        longest = max(len(vectors) for vectors in rows)
        if longest == 0:
            return None
        width = next(vector for vectors in rows for vector in vectors).shape[0]
        stacked_BTD = torch.zeros(len(rows), longest, width)
        for row_TD, vectors in zip(stacked_BTD, rows, strict=True):
            for place, vector in zip(row_TD, vectors, strict=False):
                place.copy_(vector)
        return stacked_BTD.to(self.base.device)


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of them."""
    return re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)))


def _series(token: str, vectors: Mapping[str, Tensor]) -> str:
    """A token that was learned as several vectors is written as all of them (diffusers' textual inversion)."""
    names = [token]
    while f"{token}_{len(names)}" in vectors:
        names.append(f"{token}_{len(names)}")
    return " ".join(names)
