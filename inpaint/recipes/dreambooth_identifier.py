"""The word that stands for a subject: a rare token of the base's tokenizer, as DreamBooth wants it.

Source: Ruiz et al. 2022, section 3.2: of the tokens of 3 or fewer letters one that is rare, so that the base knows no
meaning for it. A byte-pair tokenizer's merges are ordered by how frequent they were, so that a high id is rare.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from inpaint.errors import InpaintError

AUTO = "auto"
"""As identifier: `rarest_token` finds one."""
LONGEST = 3
"""Letters of a rare token."""
COMMON = 0.5
"""A token is common where its id is in the lower of this share of the vocabulary."""


def rarest_token(tokenizers: Sequence[Any], texts: Iterable[str]) -> str:
    """The rarest word of up to three letters that is one token of each tokenizer, and no word of `texts`.

    Raises:
        InpaintError: the tokenizers have no such token.
    """
    taken = {word for text in texts for word in words_of(text)}
    first = tokenizers[0].get_vocab()
    ending = re.compile(rf"([a-z]{{2,{LONGEST}}})</w>")
    for token, _ in sorted(first.items(), key=lambda item: -item[1]):
        match = ending.fullmatch(token)
        if match and match[1] not in taken and all(len(_ids(one, match[1])) == 1 for one in tokenizers):
            return match[1]
    raise InpaintError(
        f"identifier {AUTO}: the tokenizer has no word of up to {LONGEST} letters that is one token and not in the "
        "captions: give a word"
    )


def doubts_about(word: str, tokenizers: Sequence[Any]) -> list[str]:
    """Why a word may serve badly as an identifier, a sentence each; none for a good one."""
    doubts = []
    ids = _ids(tokenizers[0], word)
    if len(ids) > 1:
        pieces = " + ".join(piece.removesuffix("</w>") for piece in tokenizers[0].convert_ids_to_tokens(ids))
        doubts.append(
            f"identifier {word!r} is {len(ids)} tokens ({pieces}), which mean something by themselves: `{AUTO}` finds "
            "one that is a single rare token"
        )
    elif ids and ids[0] < COMMON * len(tokenizers[0]):
        doubts.append(
            f"identifier {word!r} is a common word (token {ids[0]} of {len(tokenizers[0])}), whose meaning the subject "
            f"would share: `{AUTO}` finds a rare one"
        )
    return doubts


def words_of(text: str) -> list[str]:
    """In lower case, as the tokenizer would divide them."""
    return re.findall(r"[^\W_]+", text.lower())


def _ids(tokenizer: Any, word: str) -> list[int]:
    ids: list[int] = tokenizer(word, add_special_tokens=False).input_ids
    return ids
