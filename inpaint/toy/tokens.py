"""The toy bases' tokenizer: CLIP's byte-level BPE with a vocabulary of a few hundred.

Every byte is in the vocabulary, so that any text can be encoded; the merges make each of WORDS one token.
"""

from collections import Counter
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from inpaint.toy.catalogue import BACKGROUND_NAMES, CATEGORY_INIT_WORDS, COLOUR_NAMES, SHAPE_NAMES

MAX_TOKENS = 32
END = "</w>"

WORDS: tuple[str, ...] = (
    *("a", "an", "on", "with", "the", "of", "and", "in", "background", "photo", "product"),
    *COLOUR_NAMES,
    *SHAPE_NAMES,
    *BACKGROUND_NAMES,
    *CATEGORY_INIT_WORDS.values(),
)
"""One token each. In the base's training captions only: a, an, on, and the names of the catalogue."""


def learn_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte-pair merges (Sennrich et al. 2016, algorithm 1) until each word is one token; ties go to the first pair
    in alphabetical order. Encoding with these merges repeats the same steps, so it ends at the same one token."""
    spelled = [[*word[:-1], word[-1] + END] for word in words]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in spelled for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merged(word, best) for word in spelled]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def build_tokenizer(folder: str | Path) -> CLIPTokenizer:
    """Write the tokenizer to `folder` and return it as loaded from there.

    As with Stable Diffusion 1.5: start, text, end; padded with the end token, which is the last of the vocabulary.
    """
    letters = list(bytes_to_unicode().values())
    merges = learn_merges(WORDS)
    pieces = [*letters, *(letter + END for letter in letters), *("".join(pair) for pair in merges)]
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges, model_max_length=MAX_TOKENS
    )
    tokenizer.save_pretrained(str(folder))
    loaded: CLIPTokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    return loaded
