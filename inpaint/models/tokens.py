"""Special tokens: one new token per category, whose embedding row is all that is trained of the embedding.

Source: textual inversion (Gal et al. 2022). The token is added to the tokenizer exactly as diffusers'
`load_textual_inversion` adds it, so that a prompt is tokenised alike in training and in a plain diffusers pipeline.
"""

from collections.abc import Container, Mapping

import torch
from torch import Tensor, nn

from inpaint.errors import InpaintError
from inpaint.models.base import Base


class ExtendedEmbedding(nn.Module):
    """A frozen embedding table with trainable fp32 rows appended."""

    def __init__(self, frozen: nn.Embedding, rows_ND: Tensor) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.rows = nn.Parameter(rows_ND.float())

    @property
    def weight(self) -> Tensor:
        return torch.cat([self.frozen.weight, self.rows.to(self.frozen.weight.dtype)])

    def forward(self, ids_BL: Tensor) -> Tensor:
        known = self.frozen.num_embeddings
        old_BLD = self.frozen(ids_BL.clamp(max=known - 1))
        new_BLD = nn.functional.embedding((ids_BL - known).clamp(min=0), self.rows).to(old_BLD.dtype)
        return torch.where((ids_BL >= known)[..., None], new_BLD, old_BLD)


def add_tokens(base: Base, init_words: Mapping[str, str]) -> None:
    """Add each token to every tokenizer, its row started at the mean embedding of its `init_words`.

    Raises:
        InpaintError: the token is in the vocabulary already, or its words give no token.
    """
    for tokenizer, encoder in zip(base.tokenizers, base.text_encoders, strict=True):
        embedding = encoder.get_input_embeddings()
        known = embedding.num_embeddings
        rows = []
        for token, words in init_words.items():
            ids = tokenizer(words, add_special_tokens=False).input_ids
            if not ids:
                raise InpaintError(f"token {token}: the init words {words!r} give no token; name a word, as in 'food'")
            rows.append(embedding.weight[ids].float().mean(0))
        if len(tokenizer) != known:
            raise InpaintError(
                f"base {base.info.name}: the tokenizer has {len(tokenizer)} tokens, the embedding {known}"
            )
        if tokenizer.add_tokens(list(init_words)) != len(init_words):
            raise InpaintError(
                f"base {base.info.name}: one of {sorted(init_words)} is a token already; rename the category"
            )
        encoder.set_input_embeddings(ExtendedEmbedding(embedding, torch.stack(rows)))


def token_parameters(base: Base) -> dict[str, nn.Parameter]:
    """The new rows (N D, in the order they were added) by the name they have in checkpoints."""
    names = ["tokens", "tokens_2"]
    embeddings = [encoder.get_input_embeddings() for encoder in base.text_encoders]
    return {n: e.rows for n, e in zip(names, embeddings, strict=False) if isinstance(e, ExtendedEmbedding)}


@torch.no_grad()
def load_tokens(base: Base, rows: Mapping[str, list[Tensor]]) -> None:
    """Add tokens with trained rows: `rows[token]` holds one vector (D) per text encoder."""
    words = dict.fromkeys(rows, "a")
    add_tokens(base, words)
    for index, parameter in enumerate(token_parameters(base).values()):
        parameter.copy_(torch.stack([vectors[index] for vectors in rows.values()]))


def vectors_of(token: str, known: Container[str]) -> list[str]:
    """The names of a token's vectors: its own, and `TOKEN_1`, `TOKEN_2`, ... as far as they are known (diffusers)."""
    names = [token]
    while f"{token}_{len(names)}" in known:
        names.append(f"{token}_{len(names)}")
    return names
