"""Prompts -> text conditioning, equal to diffusers' `encode_prompt`; and tokens of one's own in them.

A category has one new token, whose embedding row is all that is trained of the embedding (textual inversion, Gal et al.
2022). It is added to the tokenizer exactly as diffusers' `load_textual_inversion` adds it, so that a prompt is
tokenised alike in training and in a plain diffusers pipeline.

Shapes: B prompts, N chunks of them, L tokens (77 a chunk), D embedding width (both encoders' side by side for SDXL), P
pooled width. Of new tokens: N.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inpaint.device import on_device
from inpaint.errors import InpaintError
from inpaint.models.base import Base
from inpaint.models.prompt_text import AS_WRITTEN, PromptSettings, ReadPrompt, Tokens, read_prompt, tokenize
from inpaint.warned import Several


@dataclass(frozen=True)
class Conditioning:
    """What the U-Net is told about the prompts."""

    embeds_BLD: Tensor
    pooled_BP: Tensor | None
    """The second encoder's projected text embedding; SDXL only."""
    cut: int = 0
    """Tokens of the prompts that had no place."""


def encode_prompts(
    base: Base, prompts: list[str], settings: PromptSettings = AS_WRITTEN, *, negative: bool = False
) -> Conditioning:
    """Embeds prompts, differentiably: SD 1.5 the last hidden state; SDXL both encoders' penultimate hidden states.

    A token that was learned as several vectors (`<t>`, `<t>_1`, ...) is expanded, as diffusers' textual inversion does.
    """
    return stacked(encode_rows(base, [read_prompt(prompt, settings) for prompt in prompts], negative=negative))


def encode_rows(base: Base, prompts: list[ReadPrompt], *, negative: bool = False) -> list[Conditioning]:
    """The same of each by itself, with L as it needs."""
    tokens = tokenize(base.tokenizers, [prompts] * len(base.tokenizers))
    return encode_tokens(base, tokens, [negative and prompt.texts in ([], [""]) for prompt in prompts])


def encode_together(base: Base, tokens: Tokens) -> Conditioning:
    """What the text encoders make of tokens, in one piece; no prompt is an empty negative one."""
    if len(set(tokens.counts)) > 1:
        return stacked(encode_tokens(base, tokens, [False] * len(tokens.counts)))
    embeds_NLD, pooled_NP = _encoded(base, tokens)
    chunks = tokens.counts[0]
    embeds_BLD = embeds_NLD.unflatten(0, (-1, chunks)).flatten(1, 2)
    if pooled_NP is not None and chunks > 1:
        pooled_NP = pooled_NP[tokens.pooled]
    return Conditioning(embeds_BLD, pooled_NP, sum(tokens.cut))


def encode_tokens(base: Base, tokens: Tokens, is_empty_negative: list[bool]) -> list[Conditioning]:
    """Each prompt's row, of its own memory; of an empty negative prompt zeros where the base says so (SDXL, as
    diffusers' default)."""
    embeds_NLD, pooled_NP = _encoded(base, tokens)
    rows = []
    for i, embeds_CLD in enumerate(embeds_NLD.split(tokens.counts)):
        embeds_1LD = embeds_CLD.flatten(0, 1)[None].clone()
        pooled_1P = None if pooled_NP is None else pooled_NP[tokens.pooled[i]][None].clone()
        if is_empty_negative[i] and base.zero_empty_negative and pooled_1P is not None:
            embeds_1LD, pooled_1P = torch.zeros_like(embeds_1LD), torch.zeros_like(pooled_1P)
        rows.append(Conditioning(embeds_1LD, pooled_1P, tokens.cut[i]))
    return rows


def _encoded(base: Base, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
    """Of each chunk: embeddings N x L x D and, of SDXL, the pooled one, N x P."""
    hidden: list[Tensor] = []
    pooled_NP: Tensor | None = None
    for ids_NL, weights_NL, encoder in zip(tokens.ids, tokens.weights, base.text_encoders, strict=True):
        output = encoder(on_device(ids_NL, encoder.device), output_hidden_states=base.info.is_xl)
        states_NLD = output.hidden_states[-2] if base.info.is_xl else output.last_hidden_state
        hidden.append(states_NLD if weights_NL is None else _weighed(states_NLD, weights_NL))
        if base.info.is_xl:
            pooled_NP = getattr(output, "text_embeds", None)
    return torch.cat(hidden, dim=-1), pooled_NP


def _weighed(states_NLD: Tensor, weights_NL: Tensor) -> Tensor:
    """AUTOMATIC1111's "original" emphasis: times the weights, and then each chunk's mean is as it was. One of 0 cannot
    be restored; that of a chunk without weights may be 0, too."""
    states = states_NLD.float()
    scaled = states * on_device(weights_NL, states.device)[..., None]
    before, after = (one.mean((1, 2), keepdim=True) for one in (states, scaled))
    factor = before.where(after != 0, 1) / after.where(after != 0, 1)
    return (scaled * factor).to(states_NLD.dtype)


def stacked(rows: Sequence[Conditioning]) -> Conditioning:
    """Rows as one. Those of fewer chunks than others are repeated, whole: attention to a text twice is attention to it
    once, so a row does not depend on the others."""
    length = math.lcm(*(row.embeds_BLD.shape[1] for row in rows))
    repeats = [length // row.embeds_BLD.shape[1] for row in rows]
    embeds = [
        row.embeds_BLD if n == 1 else row.embeds_BLD.repeat(1, n, 1) for row, n in zip(rows, repeats, strict=True)
    ]
    pooled = [row.pooled_BP for row in rows if row.pooled_BP is not None]
    return Conditioning(torch.cat(embeds), torch.cat(pooled) if pooled else None, sum(row.cut for row in rows))


def warn_of_cuts(cut: Iterable[int]) -> None:
    """Args: cut: of each prompt, the tokens that had no place. One warning with their number, without any text: prompts
    are their authors', and a run has many."""
    if prompts := sum(map(bool, cut)):
        text = "prompts are cut: more tokens than prompt_chunks holds have no effect"
        warnings.warn(Several(text, prompts), stacklevel=3)


def unet_kwargs(
    conditioning: Conditioning, height: int, width: int, *, origin_B4: Tensor | None = None
) -> dict[str, Any]:
    """Keyword arguments of the U-Net besides latents and timesteps, for images of `height` x `width` pixels.

    SDXL's `time_ids` are (original height and width, crop top and left, target height and width): Podell 2023, 2.2.

    Args:
        origin_B4: the first four of each row; None: these images are what there is, as painting tells it.
    """
    kwargs: dict[str, Any] = {"encoder_hidden_states": conditioning.embeds_BLD}
    if conditioning.pooled_BP is not None:
        pooled_BP = conditioning.pooled_BP
        # Made on the device: a copy would wait for all that is queued there.
        sizes = (height, width) if origin_B4 is not None else (height, width, 0, 0, height, width)
        columns = [pooled_BP.new_full((len(pooled_BP), 1), size) for size in sizes]
        if origin_B4 is not None:
            columns.insert(0, origin_B4.float())  # bf16 would make 1336 of 1333
        kwargs["added_cond_kwargs"] = {"text_embeds": pooled_BP, "time_ids": torch.cat(columns, 1)}
    return kwargs


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
