"""Captions as lists of tags, between commas: what kohya's trainer does with them.

Source: kohya-ss/sd-scripts, `keep_tokens`, `shuffle_caption` and `caption_tag_dropout_rate`. What is drawn is a
function of the generator alone, which samples have by (seed, position).
"""

import re
from dataclasses import dataclass

import numpy as np

from inpaint.errors import InpaintError

_COMMA = re.compile(r"\s*(?:(?<!\d),|,(?!\d))\s*")
"""Not that of 1,200."""


def tags_of(caption: str) -> list[str]:
    """What stands between a caption's commas."""
    return [tag for tag in _COMMA.split(caption.strip()) if tag]


@dataclass(frozen=True, kw_only=True)
class CaptionTags:
    """How captions are told in training."""

    activation: str = ""
    """What every caption begins with, and what was learned is called by; several tags stand between commas. A caption
    that says it already does not say it twice. Empty: none."""
    keep: int = 1
    """Tags at the beginning that neither move nor are left out, the activation tag (or tags) among them."""
    shuffle: bool = False
    """Tell the other tags of each sample in an order of its own."""
    dropout: float = 0.0
    """Share of the other tags that are left out."""

    def __post_init__(self) -> None:
        if not self.activation.isprintable():
            raise InpaintError(f"activation tag {self.activation!r}: give one that can be printed, on one line")
        if self.keep < 0 or not 0 <= self.dropout <= 1:
            raise InpaintError(f"keep {self.keep}, dropout {self.dropout}: give a count of tags, and a share of 0 to 1")

    def written(self, caption: str) -> str:
        """A caption with nothing moved or left out."""
        first = tags_of(self.activation)
        return ", ".join([*first, *self._others(caption, first)]) if first else caption

    def drawn(self, caption: str, rng: np.random.Generator) -> str:
        """The caption of one sample."""
        if not self.shuffle and not self.dropout:
            return self.written(caption)
        first, tags = tags_of(self.activation), tags_of(self.written(caption))
        fixed = max(self.keep, len(first))
        free = np.array(tags[fixed:], dtype=object)
        if self.shuffle:
            # The raw words are promised for ever, what `shuffle` makes of them is not.
            free = free[np.argsort(rng.bit_generator.random_raw(len(free)), kind="stable")]
        return ", ".join([*tags[:fixed], *free[rng.random(len(free)) >= self.dropout]])

    def _others(self, caption: str, first: list[str]) -> list[str]:
        # Also one that is not followed by a comma.
        caption = re.sub(rf"^\s*{re.escape(self.activation.strip(', '))}\s", "", caption, flags=re.IGNORECASE)
        said = {tag.casefold() for tag in first}
        return [tag for tag in tags_of(caption) if tag.casefold() not in said]
