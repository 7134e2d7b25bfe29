"""Prompts as token ids: literal text or text with weights, in as many windows of the text encoder as it takes.

Weights and chunks are AUTOMATIC1111's: (a) and [a] weigh 1.1 and 1/1.1, (a:1.3) weighs 1.3, brackets within brackets
multiply, a backslash makes a bracket literal, BREAK begins a new chunk. A chunk is bos, as many tokens as fit, eos and
padding; where one is full, the text behind a comma among its last 20 tokens moves to the next. Shapes: N chunks of all
prompts, one prompt after another; L tokens of a chunk (77).
"""

import itertools
import math
import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from inpaint.errors import InpaintError

MOST_CHUNKS = 4
_BACKTRACK = 20
_SYMBOL = re.compile(
    r"\\(?P<escaped>[()\[\]\\]?)|(?P<opening>[(\[])|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)|(?P<closing>[)\]])"
    r"|[^\\()\[\]:]+|:"
)
_LORA = re.compile(r"\s*<(?:lora|lyco):([^<>]*)>", re.IGNORECASE)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_OPENING = {")": "(", "]": "["}
_FACTORS = {"(": 1.1, "[": 1 / 1.1}

Piece = tuple[str, float]
"""Text and its weight."""


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """How prompts are read."""

    prompt_weights: bool = False
    """Read (word:1.2), [word], BREAK and backslashes as AUTOMATIC1111 does; else a prompt is literal text."""
    prompt_chunks: int = 3
    """Windows of the text encoder (75 tokens each) that a prompt may fill, 1 to 4; what goes beyond is cut."""

    def __post_init__(self) -> None:
        if not 1 <= self.prompt_chunks <= MOST_CHUNKS:
            raise InpaintError(f"prompt_chunks {self.prompt_chunks}: give 1 to {MOST_CHUNKS}, of 75 tokens each")

    @property
    def prompts(self) -> "PromptSettings":
        """These alone, of what has more settings."""
        return PromptSettings(prompt_weights=self.prompt_weights, prompt_chunks=self.prompt_chunks)


AS_WRITTEN = PromptSettings()


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt before it is tokens."""

    parts: list[list[Piece]]
    """What stands between BREAKs."""
    most: int
    """Chunks that it may fill."""

    @property
    def texts(self) -> list[str]:
        """Of all pieces."""
        return [text for part in self.parts for text, _ in part]

    def rewritten(self, change: Callable[[str], str]) -> "ReadPrompt":
        """With each piece's text changed."""
        return replace(self, parts=[[(change(text), weight) for text, weight in part] for part in self.parts])


@dataclass(frozen=True)
class Tokens:
    """Prompts as the text encoders of a base read them; on the CPU."""

    ids: list[Tensor]
    """N x L, int64, for each encoder."""
    weights: list[Tensor | None]
    """N x L, float32, for each encoder; None: all are 1."""
    counts: list[int]
    """Chunks of each prompt."""
    cut: list[int]
    """Tokens of each prompt that had no place."""

    pooled: list[int]
    """Of each prompt the chunk whose pooled embedding stands for it: the first, or the first one with the highest id,
    for there SDXL pools, and added tokens have the highest."""


def read_prompt(prompt: str, settings: PromptSettings) -> ReadPrompt:
    """A prompt's pieces of text."""
    parts = weighted_parts(prompt) if settings.prompt_weights else [[(prompt, 1.0)]]
    return ReadPrompt(parts, settings.prompt_chunks)


def split_lora_tags(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """A prompt without its `<lora:NAME:WEIGHT>` and `<lora:NAME>`, as A1111's users write them, and these names and
    weights (1 where there is none). Raises InpaintError for one that says anything else."""
    tags = []
    for match in _LORA.finditer(prompt):
        name, _, told = (part.strip() for part in match[1].partition(":"))
        try:
            weight = float(told or 1)
        except ValueError:
            weight = math.nan
        if not name or not math.isfinite(weight):
            raise InpaintError(f"{match[0].strip()[:80]!a}: write <lora:NAME:WEIGHT> or <lora:NAME>")
        tags.append((name, weight))
    return _LORA.sub("", prompt).strip(" \n,") if tags else prompt, tags


def weighted_parts(prompt: str) -> list[list[Piece]]:
    """Between BREAKs, pieces of text with their weights. Brackets that are not closed reach to the end; one that closes
    nothing is text."""
    found: list[tuple[str | None, float]] = []  # None: BREAK
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def weigh(start: int, factor: float) -> None:
        found[start:] = [(text, weight * factor) for text, weight in found[start:]]

    for match in _SYMBOL.finditer(prompt):
        kind, text = match.lastgroup, match[0]
        if kind == "opening":
            opened[text].append(len(found))
        elif kind == "weight" and opened["("]:
            weigh(opened["("].pop(), float(match["weight"]))
        elif kind == "closing" and opened[_OPENING[text]]:
            weigh(opened[_OPENING[text]].pop(), _FACTORS[_OPENING[text]])
        elif kind == "escaped":
            found.append((match["escaped"], 1.0))
        else:
            first, *others = _BREAK.split(text)
            found.append((first, 1.0))
            for other in others:
                found += [(None, 1.0), (other, 1.0)]
    for bracket, starts in opened.items():
        for start in starts:
            weigh(start, _FACTORS[bracket])
    return _joined(found)


def _joined(found: list[tuple[str | None, float]]) -> list[list[Piece]]:
    """Neighbours of one weight are one text, so that they are tokenised together."""
    parts: list[list[Piece]] = [[]]
    for text, weight in found:
        last = parts[-1]
        if text is None:
            parts.append([])
        elif last and last[-1][1] == weight:
            last[-1] = (last[-1][0] + text, weight)
        elif text:
            last.append((text, weight))
    return parts


def tokenize(tokenizers: Sequence[Any], written: Sequence[Sequence[ReadPrompt]]) -> Tokens:
    """Prompts as tokens; `written` are the same prompts for each tokenizer."""
    chunked = [
        [_chunks(tokenizer, prompt, ids) for prompt, ids in zip(prompts, _encoded(tokenizer, prompts), strict=True)]
        for tokenizer, prompts in zip(tokenizers, written, strict=True)
    ]
    # A token may have more vectors in one encoder than in the other.
    counts = [max(len(chunks) for chunks, _ in rows) for rows in zip(*chunked, strict=True)]
    ids, weights = [], []
    for tokenizer, rows in zip(tokenizers, chunked, strict=True):
        all_chunks = [c for (chunks, _), n in zip(rows, counts, strict=True) for c in chunks + [[]] * (n - len(chunks))]
        ids.append(torch.tensor([_framed(tokenizer, [token for token, _ in chunk]) for chunk in all_chunks]))
        weights.append(_weights([[weight for _, weight in chunk] for chunk in all_chunks], ids[-1].shape[1]))
    return Tokens(ids, weights, counts, [cut for _, cut in chunked[0]], _pooled(ids[-1], counts))


def _pooled(ids_NL: Tensor, counts: list[int]) -> list[int]:
    highest, starts = ids_NL.amax(1).tolist(), [0, *itertools.accumulate(counts)]
    return [max(range(*ends), key=highest.__getitem__) for ends in itertools.pairwise(starts)]


def _encoded(tokenizer: Any, prompts: Sequence[ReadPrompt]) -> list[list[list[tuple[int, float]]]]:
    """For each prompt and part, its tokens with their weights; all texts in one call."""
    pieces = [piece for prompt in prompts for part in prompt.parts for piece in part]
    texts = [_expand_multi_vector_tokens(tokenizer, text) for text, _ in pieces]
    ids = iter(tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else [])
    return [
        [[(token, weight) for _, weight in part for token in next(ids)] for part in prompt.parts] for prompt in prompts
    ]


def _chunks(
    tokenizer: Any, prompt: ReadPrompt, parts: list[list[tuple[int, float]]]
) -> tuple[list[list[tuple[int, float]]], int]:
    """Tokens as chunks, and how many of them had no place."""
    room, comma = tokenizer.model_max_length - 2, tokenizer.convert_tokens_to_ids(",</w>")
    chunks: list[list[tuple[int, float]]] = []
    for number, rest in enumerate(parts):
        if not rest and (not chunks or number < len(parts) - 1):
            chunks.append([])  # BREAK ends an empty chunk, too
        while rest:
            end = room
            if len(rest) > room and rest[room][0] != comma and len(chunks) < prompt.most - 1:
                near = [i for i in range(max(0, room - _BACKTRACK), room) if rest[i][0] == comma]
                end = near[-1] + 1 if near else room
            chunks.append(rest[:end])
            rest = rest[end:]
    total = sum(len(part) for part in parts)
    chunks = chunks[: prompt.most]
    return chunks, total - sum(len(chunk) for chunk in chunks)


def _framed(tokenizer: Any, ids: list[int]) -> list[int]:
    padding = [tokenizer.pad_token_id] * (tokenizer.model_max_length - 2 - len(ids))
    return [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *padding]


def _weights(chunks: list[list[float]], length: int) -> Tensor | None:
    if all(weight == 1 for chunk in chunks for weight in chunk):
        return None
    weights_NL = torch.ones(len(chunks), length)
    for row, chunk in zip(weights_NL, chunks, strict=True):
        row[1 : 1 + len(chunk)] = torch.tensor(chunk)
    return weights_NL


def _expand_multi_vector_tokens(tokenizer: Any, prompt: str) -> str:
    """`<t>` -> `<t> <t>_1 <t>_2` for as many vectors as were learned (diffusers `maybe_convert_prompt`)."""
    added = tokenizer.added_tokens_encoder
    if not any(token in prompt and f"{token}_1" in added for token in added):
        return prompt
    for token in set(tokenizer.tokenize(prompt)) & set(added):
        prompt = prompt.replace(token, " ".join(vectors_of(token, added)))
    return prompt


def vectors_of(token: str, known: Container[str]) -> list[str]:
    """The names of a token's vectors: its own, and `TOKEN_1`, `TOKEN_2`, ... as far as they are known (diffusers)."""
    names = [token]
    while f"{token}_{len(names)}" in known:
        names.append(f"{token}_{len(names)}")
    return names
