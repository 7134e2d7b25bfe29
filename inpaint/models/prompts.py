"""Prompts -> text conditioning, equal to diffusers' `encode_prompt`; and tokens of one's own in them.

A category has one new token, whose embedding row is all that is trained of the embedding (textual inversion, Gal et al.
2022). It is added to the tokenizer exactly as diffusers' `load_textual_inversion` adds it, so that a prompt is
tokenised alike in training and in a plain diffusers pipeline.

Shapes: B prompts, L tokens (77), D embedding width (both encoders' side by side for SDXL), P pooled width, N new
tokens.
"""

import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inpaint.device import on_device
from inpaint.errors import InpaintError
from inpaint.models.base import Base
from inpaint.warned import Several


@dataclass(frozen=True)
class Conditioning:
    """What the U-Net is told about the prompts."""

    embeds_BLD: Tensor
    pooled_BP: Tensor | None
    """The second encoder's projected text embedding; SDXL only."""

    def split(self) -> list["Conditioning"]:
        """Its rows, each of its own memory."""
        embeds = [row_1LD.clone() for row_1LD in self.embeds_BLD.split(1)]
        if self.pooled_BP is None:
            return [Conditioning(embeds_1LD, None) for embeds_1LD in embeds]
        return [Conditioning(e, p.clone()) for e, p in zip(embeds, self.pooled_BP.split(1), strict=True)]


def encode_prompts(base: Base, prompts: list[str], *, negative: bool = False) -> Conditioning:
    """Embeds prompts, differentiably: SD 1.5 the last hidden state; SDXL both encoders' penultimate hidden states.

    A prompt longer than the tokenizer's window is cut, with one warning per prompt. A token that was learned as
    several vectors (`<t>`, `<t>_1`, ...) is expanded, as diffusers' textual inversion does.
    """
    ids = [tokenize(tokenizer, prompts) for tokenizer in base.tokenizers]
    return encode_ids(base, ids, [negative and prompt == "" for prompt in prompts])


def encode_ids(base: Base, ids: list[Tensor], is_empty_negative: list[bool]) -> Conditioning:
    """What the text encoders make of token ids, B x L for each of them; of an empty negative prompt zeros where the
    base says so (SDXL, as diffusers' default)."""
    hidden: list[Tensor] = []
    pooled_BP: Tensor | None = None
    for ids_BL, encoder in zip(ids, base.text_encoders, strict=True):
        output = encoder(on_device(ids_BL, encoder.device), output_hidden_states=base.info.is_xl)
        hidden.append(output.hidden_states[-2] if base.info.is_xl else output.last_hidden_state)
        if base.info.is_xl:
            pooled_BP = getattr(output, "text_embeds", None)
    embeds_BLD = torch.cat(hidden, dim=-1)
    if not base.zero_empty_negative or pooled_BP is None or not any(is_empty_negative):
        return Conditioning(embeds_BLD, pooled_BP)
    kept = [0.0 if empty else 1.0 for empty in is_empty_negative]
    kept_B = on_device(kept, embeds_BLD.device).to(embeds_BLD.dtype)
    return Conditioning(embeds_BLD * kept_B[:, None, None], pooled_BP * kept_B[:, None])


def unet_kwargs(conditioning: Conditioning, height: int, width: int) -> dict[str, Any]:
    """Keyword arguments of the U-Net besides latents and timesteps, for images of `height` x `width` pixels.

    SDXL's `time_ids` are (original height and width, crop top and left, target height and width): Podell 2023, 2.2.
    """
    kwargs: dict[str, Any] = {"encoder_hidden_states": conditioning.embeds_BLD}
    if conditioning.pooled_BP is not None:
        pooled_BP = conditioning.pooled_BP
        # Made on the device: a copy would wait for all that is queued there.
        sizes = (height, width, 0, 0, height, width)
        ids_B6 = torch.cat([pooled_BP.new_full((len(pooled_BP), 1), size) for size in sizes], 1)
        kwargs["added_cond_kwargs"] = {"text_embeds": pooled_BP, "time_ids": ids_B6}
    return kwargs


def tokenize(tokenizer: Any, prompts: list[str]) -> Tensor:
    """Token ids B L, padded to the tokenizer's window; warns once where prompts are cut, without repeating any: they
    are their authors', and a service has many."""
    prompts = [_expand_multi_vector_tokens(tokenizer, p) for p in prompts]
    length = tokenizer.model_max_length
    encoded = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    full = [prompts[row] for row in encoded.attention_mask[:, -1].nonzero()[:, 0].tolist()]
    cut = sum(len(tokenizer(prompt, verbose=False).input_ids) > length for prompt in full)
    if cut:
        warnings.warn(
            Several(f"prompts of more than {length} tokens are cut: the rest has no effect", cut), stacklevel=2
        )
    ids_BL: Tensor = encoded.input_ids
    return ids_BL


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


class ExtendedEmbedding(nn.Module):
    """A frozen embedding table, and beyond its end rows of new tokens, alike for all prompts or each prompt's own."""

    def __init__(self, frozen: nn.Embedding, rows: Tensor | None = None) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.rows = rows
        """N x D, or B x N x D; None: no new token is used."""

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Token ids -> B x L x D."""
        if self.rows is None:
            return self.frozen(ids_BL)
        known = self.frozen.num_embeddings
        old_BLD, new_BL = self.frozen(ids_BL.clamp(max=known - 1)), (ids_BL - known).clamp(min=0)
        if self.rows.ndim == 2:
            new_BLD = nn.functional.embedding(new_BL, self.rows)
        else:
            new_BLD = self.rows[torch.arange(len(ids_BL), device=ids_BL.device)[:, None], new_BL]
        return torch.where((ids_BL >= known)[..., None], new_BLD.to(old_BLD.dtype), old_BLD)


def add_tokens(base: Base, init_words: Mapping[str, str]) -> None:
    """Add each token to every tokenizer, its row, in fp32, started at the mean embedding of its `init_words`. Raises
    InpaintError for a token that is in the vocabulary already, or whose words give no token."""
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
        encoder.set_input_embeddings(ExtendedEmbedding(embedding, nn.Parameter(torch.stack(rows))))


def token_parameters(base: Base) -> dict[str, nn.Parameter]:
    """The new rows (N D, in the order they were added) by the name they have in checkpoints."""
    named = zip(
        ("tokens", "tokens_2"), (encoder.get_input_embeddings() for encoder in base.text_encoders), strict=False
    )
    return {name: table.get_parameter("rows") for name, table in named if isinstance(table, ExtendedEmbedding)}


@torch.no_grad()
def load_tokens(base: Base, embeds: Sequence[Mapping[str, Tensor]]) -> None:
    """Add tokens with trained rows: token -> vector (D), one mapping per text encoder."""
    add_tokens(base, dict.fromkeys(embeds[0], "a"))
    for own, parameter in zip(embeds, token_parameters(base).values(), strict=True):
        parameter.copy_(torch.stack([own[token] for token in embeds[0]]))
