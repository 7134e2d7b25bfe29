"""Prompts as token ids with weights, in as many windows of a text encoder as they take; as AUTOMATIC1111 has them.

Shapes: N windows, L tokens of a window, D width.
"""

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

Prompt = str | Sequence[Sequence[tuple[str, float]]]
"""Text, or parts that begin windows of their own, each of pieces of text with their weights
(`inpaint.models.prompt_text.read_prompt` reads brackets so)."""
Window = list[tuple[int, float]]
"""Token ids, without those of the start, the end and the padding, and their weights."""
_BACKTRACK = 20


class Words:
    """One text encoder's tokenizer; learned tokens have the ids behind the vocabulary's, in their rows' order."""

    def __init__(self, file: Path, learned: Sequence[str] = ()) -> None:
        """Args: learned: names of the rows that come with an adapter."""
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        known = self._tokenizer.get_vocab_size()
        self._tokenizer.add_tokens(list(learned))
        self._rows = {self._tokenizer.token_to_id(token): known + row for row, token in enumerate(learned)}
        self._added = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        """The base's own, too."""
        self._comma = self._tokenizer.token_to_id(",</w>")

    def windows(self, prompt: Prompt, *, room: int, most: int) -> tuple[list[Window], int]:
        """A prompt in windows of `room` tokens, and how many of its tokens had no place in `most` of them. Where one is
        full, what is behind a comma among its last tokens goes to the next."""
        parts = [[(prompt, 1.0)]] if isinstance(prompt, str) else prompt
        windows: list[Window] = []
        total = 0
        for place, pieces in enumerate(parts):
            rest = [(token, weight) for text, weight in pieces for token in self._ids(text)]
            total += len(rest)
            if not rest and (not windows or place < len(parts) - 1):
                windows.append([])
            while rest:
                end = room
                if len(rest) > room and rest[room][0] != self._comma and len(windows) < most - 1:
                    near = [i for i in range(max(0, room - _BACKTRACK), room) if rest[i][0] == self._comma]
                    end = near[-1] + 1 if near else room
                windows.append(rest[:end])
                rest = rest[end:]
        windows = windows[:most]
        return windows, total - sum(map(len, windows))

    def _ids(self, text: str) -> list[int]:
        for token in set(self._encoded(text).tokens) & self._added:
            text = text.replace(token, " ".join(_vectors_of(token, self._added)))
        return [self._rows.get(token, token) for token in self._encoded(text).ids]

    def _encoded(self, text: str) -> Any:
        return self._tokenizer.encode(text, add_special_tokens=False)


def is_empty(prompt: Prompt) -> bool:
    """Whether it says nothing."""
    return not prompt if isinstance(prompt, str) else not any(text for pieces in prompt for text, _ in pieces)


def weighed(states_NLD: np.ndarray, weights: list[list[float]]) -> np.ndarray:
    """AUTOMATIC1111's "original" emphasis: times the weights, and then each window's mean is as it was. One of 0 cannot
    be restored; that of a window without weights may be 0, too."""
    if all(weight == 1 for window in weights for weight in window):
        return states_NLD
    weights_NL = np.ones(states_NLD.shape[:2], np.float32)
    for row, window in zip(weights_NL, weights, strict=True):
        row[1 : 1 + len(window)] = window
    states = states_NLD.astype(np.float32)
    scaled = states * weights_NL[..., None]
    before, after = (one.mean((1, 2), keepdims=True) for one in (states, scaled))
    result: np.ndarray = scaled * (np.where(after != 0, before, 1) / np.where(after != 0, after, 1))
    return result.astype(states_NLD.dtype)


def _vectors_of(token: str, known: Container[str]) -> list[str]:
    """The names of a token's vectors: its own, and `TOKEN_1`, `TOKEN_2`, ... as far as they are known (diffusers)."""
    names = [token]
    while f"{token}_{len(names)}" in known:
        names.append(f"{token}_{len(names)}")
    return names
