"""Prompts -> text conditioning, as Stable Diffusion 1.5 and SDXL do it; equal to diffusers' `encode_prompt`.

Shapes: B prompts, L tokens (77), D embedding width (both encoders' side by side for SDXL), P pooled width.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inpaint.models.base import Base
from inpaint.models.tokens import vectors_of


@dataclass(frozen=True)
class Conditioning:
    """What the U-Net is told about the prompts."""

    embeds_BLD: Tensor
    pooled_BP: Tensor | None
    """The second encoder's projected text embedding; SDXL only."""

    def __len__(self) -> int:
        return self.embeds_BLD.shape[0]

    def __getitem__(self, rows: slice | list[int]) -> "Conditioning":
        return Conditioning(self.embeds_BLD[rows], None if self.pooled_BP is None else self.pooled_BP[rows])

    def split(self) -> list["Conditioning"]:
        """Its rows, each of its own memory."""
        pooled = [None] * len(self) if self.pooled_BP is None else list(self.pooled_BP[:, None].clone().unbind())
        return [Conditioning(row[None].clone(), pool) for row, pool in zip(self.embeds_BLD, pooled, strict=True)]


def encode_prompts(base: Base, prompts: list[str]) -> Conditioning:
    """Embeds prompts, differentiably: SD 1.5 the last hidden state; SDXL both encoders' penultimate hidden states.

    A prompt longer than the tokenizer's window is cut, with one warning per prompt. A token that was learned as
    several vectors (`<t>`, `<t>_1`, ...) is expanded, as diffusers' textual inversion does.
    """
    return encode_ids(base, [tokenize(tokenizer, prompts) for tokenizer in base.tokenizers])


def encode_negative_prompts(base: Base, prompts: list[str]) -> Conditioning:
    """As `encode_prompts`, but an empty prompt is zeros where the base says so (SDXL, as diffusers' default)."""
    return zero_empty_negatives(base, encode_prompts(base, prompts), [prompt == "" for prompt in prompts])


def encode_ids(base: Base, ids: list[Tensor]) -> Conditioning:
    """What the text encoders make of token ids, B x L for each of them."""
    hidden: list[Tensor] = []
    pooled_BP: Tensor | None = None
    for ids_BL, encoder in zip(ids, base.text_encoders, strict=True):
        output = encoder(ids_BL.to(encoder.device), output_hidden_states=base.info.is_xl)
        hidden.append(output.hidden_states[-2] if base.info.is_xl else output.last_hidden_state)
        if base.info.is_xl:
            pooled_BP = getattr(output, "text_embeds", None)
    return Conditioning(torch.cat(hidden, dim=-1), pooled_BP)


def zero_empty_negatives(base: Base, conditioning: Conditioning, is_empty_negative: list[bool]) -> Conditioning:
    """Zeros for the empty negative prompts among the rows, where the base says so."""
    if not base.zero_empty_negative or conditioning.pooled_BP is None:
        return conditioning
    kept_B = torch.tensor([0.0 if empty else 1.0 for empty in is_empty_negative]).to(conditioning.embeds_BLD)
    return Conditioning(conditioning.embeds_BLD * kept_B[:, None, None], conditioning.pooled_BP * kept_B[:, None])


def unet_kwargs(conditioning: Conditioning, height: int, width: int) -> dict[str, Any]:
    """Keyword arguments of the U-Net besides latents and timesteps, for images of `height` x `width` pixels.

    SDXL's `time_ids` are (original height and width, crop top and left, target height and width): Podell 2023, 2.2.
    """
    kwargs: dict[str, Any] = {"encoder_hidden_states": conditioning.embeds_BLD}
    if conditioning.pooled_BP is not None:
        ids_B6 = conditioning.pooled_BP.new_tensor([[height, width, 0, 0, height, width]]).repeat(len(conditioning), 1)
        kwargs["added_cond_kwargs"] = {"text_embeds": conditioning.pooled_BP, "time_ids": ids_B6}
    return kwargs


def tokenize(tokenizer: Any, prompts: list[str]) -> Tensor:
    """Token ids B L, padded to the tokenizer's window; warns once per prompt that is cut."""
    prompts = [_expand_multi_vector_tokens(tokenizer, p) for p in prompts]
    length = tokenizer.model_max_length
    encoded = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    for row in encoded.attention_mask[:, -1].nonzero()[:, 0].tolist():
        ids = tokenizer(prompts[row], verbose=False).input_ids
        if len(ids) > length:
            # Python's default filter shows each message once, so once per prompt.
            warnings.warn(
                f"prompt cut to {length} tokens; lost: {tokenizer.decode(ids[length - 1 : -1])!r} of {prompts[row]!r}",
                stacklevel=3,
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
