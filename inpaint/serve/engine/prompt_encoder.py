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
from typing import Any, TypeVar

import torch
from tokenizers import AddedToken
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from inpaint.device import on_device
from inpaint.models.base import Base
from inpaint.models.low_rank import Uses
from inpaint.models.prompt_text import (
    AS_WRITTEN,
    MOST_CHUNKS,
    PromptSettings,
    ReadPrompt,
    read_prompt,
    tokenize,
    vectors_of,
)
from inpaint.models.prompts import Conditioning, ExtendedEmbedding, encode_tokens
from inpaint.serve.engine.adapter_slots import AdapterSlots
from inpaint.serve.service import AdapterUse

T = TypeVar("T")
_MARK = "\ue000"
"""A private-use character: reserved tokens are written with it, and it is taken out of prompts."""
RESERVED = 75 * MOST_CHUNKS
"""Different added tokens in one prompt: no more than these have a place."""


@dataclass(frozen=True)
class Prompt:
    """A text to encode."""

    text: str
    adapters: tuple[AdapterUse, ...] = ()
    uses: Uses = field(default=(), compare=False)
    """(slot, weight) of each: where it lies now."""
    is_negative: bool = False
    settings: PromptSettings = AS_WRITTEN


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
        written, meanings = [], []
        for index, tokenizer in enumerate(self._tokenizers):
            rows = [self._write(tokenizer, prompt, index) for prompt in prompts]
            written.append([row for row, _ in rows])
            meanings.append([vectors for _, vectors in rows])
        tokens = tokenize(self._tokenizers, written)

        def each_chunk(values: list[T]) -> list[T]:
            return [value for value, count in zip(values, tokens.counts, strict=True) for _ in range(count)]

        for table, pool, vectors in zip(self._tables, self._pools, meanings, strict=True):
            table.rows = _padded(each_chunk(vectors), self.base.device)
            pool.install(pool.gather(each_chunk([prompt.uses for prompt in prompts])))
        is_empty_negative = [prompt.is_negative and prompt.text == "" for prompt in prompts]
        return encode_tokens(self.base, tokens, is_empty_negative)

    def _write(self, tokenizer: Any, prompt: Prompt, encoder: int) -> tuple[ReadPrompt, list[Tensor]]:
        """The prompt with the adapters' tokens replaced by reserved ones, and what those mean (each D).

        As `tokenizer.add_tokens` would: found in the normalised text, the longest first. Reserved tokens keep the order
        of the adapters' own, for SDXL pools at the highest token. Of a token in two adapters the first one's is used.
        """
        normalise = tokenizer.backend_tokenizer.normalizer.normalize_str
        read = read_prompt(prompt.text.replace(_MARK, " "), prompt.settings)
        vectors: dict[str, Tensor] = {}
        for slot, _ in prompt.uses:
            for token, vector in self.slots.tokens[slot][encoder].items():
                vectors.setdefault(token, vector)
        if not vectors:
            return read, []
        # diffusers expands a token of several vectors only where the tokenizer's normaliser leaves its name alone.
        plain = [token for token in vectors if normalise(token) == token]
        meant = {normalise(token): token for token in reversed(vectors)}
        pattern = _any_of(meant)

        def expanded(text: str) -> str:
            if plain:
                text = _any_of(plain).sub(lambda match: " ".join(vectors_of(match[0], vectors)), text)
            return str(normalise(text))

        read = read.rewritten(expanded)
        # What lies behind more tokens than there is room for is cut off anyway.
        matches = (match for text in read.texts for match in pattern.finditer(text))
        found = list(dict.fromkeys(meant[match[0]] for match in matches))[:RESERVED]
        used = [token for token in vectors if token in found]
        written = {token: f"{_MARK}{number}{_MARK}" for number, token in enumerate(used)}
        read = read.rewritten(lambda text: pattern.sub(lambda match: written.get(meant[match[0]], ""), text))
        return read, [vectors[token] for token in used]


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
