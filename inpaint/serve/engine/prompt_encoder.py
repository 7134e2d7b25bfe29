"""Text of many rows in one call, each with the tokens and the text encoder updates of its own adapters.

The same token may mean another vector in another adapter, so added tokens have no place in a shared vocabulary.
Instead one vocabulary has a few reserved tokens, and each row says what they mean for it. Shapes: B prompts, L tokens,
D width, T reserved tokens used.
"""

import copy
import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from inpaint.device import on_device
from inpaint.models.base import Base
from inpaint.models.low_rank import Uses
from inpaint.models.prompts import Conditioning, ExtendedEmbedding, encode_ids, tokenize, vectors_of
from inpaint.serve.engine.adapter_slots import AdapterSlots
from inpaint.serve.service import AdapterUse

_MARK = "\ue000"
"""A private-use character: reserved tokens are written with it, and it is taken out of prompts."""
RESERVED = 77
"""Different added tokens in one prompt: CLIP's window, so that no more than these can be within it."""


@dataclass(frozen=True)
class Prompt:
    """A text to encode."""

    text: str
    adapters: tuple[AdapterUse, ...] = ()
    uses: Uses = field(default=(), compare=False)
    """(slot, weight) of each: where it lies now."""
    is_negative: bool = False


class PromptEncoder:
    """Encodes texts for the engine's loop, and remembers the last ones."""

    def __init__(self, base: Base, slots: AdapterSlots, *, cached: int) -> None:
        """Replaces the text encoders' token embeddings, in place. Args: cached: texts remembered."""
        self.base, self.slots, self.cached = base, slots, cached
        self._known: OrderedDict[Prompt, Conditioning] = OrderedDict()
        self._tokenizers = [copy.deepcopy(tokenizer) for tokenizer in base.tokenizers]
        self._pools = list(slots.pools.values())[1:]
        self._tables: list[ExtendedEmbedding] = []
        for tokenizer, encoder in zip(self._tokenizers, base.text_encoders, strict=True):
            reserved = [AddedToken(f"{_MARK}{i}{_MARK}", normalized=False) for i in range(RESERVED)]
            tokenizer.add_tokens(reserved)
            table = ExtendedEmbedding(encoder.get_input_embeddings())
            encoder.set_input_embeddings(table)
            self._tables.append(table)

    def encode(self, prompts: Iterable[Prompt]) -> dict[Prompt, Conditioning]:
        """One row of conditioning for each; those not remembered are encoded in one call. Without gradients."""
        wanted = dict.fromkeys(prompts)
        # Rows with adapters first: the others then cost nothing more.
        fresh = sorted((prompt for prompt in wanted if prompt not in self._known), key=lambda one: not one.adapters)
        if fresh:
            self._known.update(zip(fresh, self._encoded(fresh), strict=True))
        found = {}
        for prompt in wanted:
            found[prompt] = self._known[prompt]
            self._known.move_to_end(prompt)
        while len(self._known) > self.cached:
            self._known.popitem(last=False)
        return found

    @torch.no_grad()
    def _encoded(self, prompts: list[Prompt]) -> list[Conditioning]:
        ids: list[Tensor] = []
        for index, (tokenizer, table, pool) in enumerate(zip(self._tokenizers, self._tables, self._pools, strict=True)):
            written = [self._write(tokenizer, prompt, index) for prompt in prompts]
            ids.append(tokenize(tokenizer, [text for text, _ in written]))
            table.rows = _padded([vectors for _, vectors in written], self.base.device)
            pool.install(pool.gather([prompt.uses for prompt in prompts]))
        is_empty_negative = [prompt.is_negative and prompt.text == "" for prompt in prompts]
        return encode_ids(self.base, ids, is_empty_negative).split()

    def _write(self, tokenizer: Any, prompt: Prompt, encoder: int) -> tuple[str, list[Tensor]]:
        """The prompt with the adapters' tokens replaced by reserved ones, and what those mean (each D).

        As `tokenizer.add_tokens` would: found in the normalised text, the longest first. Reserved tokens keep the order
        of the adapters' own, for SDXL pools at the highest token. Of a token in two adapters the first one's is used.
        """
        normalise = tokenizer.backend_tokenizer.normalizer.normalize_str
        text = prompt.text.replace(_MARK, " ")
        vectors: dict[str, Tensor] = {}
        for slot, _ in prompt.uses:
            for token, vector in self.slots.tokens[slot][encoder].items():
                vectors.setdefault(token, vector)
        if not vectors:
            return text, []
        # diffusers expands a token of several vectors only where the tokenizer's normaliser leaves its name alone.
        plain = [token for token in vectors if normalise(token) == token]
        if plain:
            text = _any_of(plain).sub(lambda match: " ".join(vectors_of(match[0], vectors)), text)
        meant = {normalise(token): token for token in reversed(vectors)}
        pattern, text = _any_of(meant), normalise(text)
        # What lies behind more tokens than the window has is cut off anyway.
        found = list(dict.fromkeys(meant[match[0]] for match in pattern.finditer(text)))[:RESERVED]
        used = [token for token in vectors if token in found]
        written = {token: f"{_MARK}{number}{_MARK}" for number, token in enumerate(used)}
        text = pattern.sub(lambda match: written.get(meant[match[0]], ""), text)
        return text, [vectors[token] for token in used]


def _padded(vectors: list[list[Tensor]], device: torch.device) -> Tensor | None:
    """B x T x D, zeros where a row has fewer; None where none has any."""
    first = next((vector for row in vectors for vector in row), None)
    if first is None:
        return None
    rows = [torch.stack(row) if row else first.new_zeros(0, len(first)) for row in vectors]
    return on_device(pad_sequence(rows, batch_first=True), device)


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of them."""
    return re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)))
