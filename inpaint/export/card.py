"""The model card of an adapter folder: what it is, how plain diffusers loads it, and a grid of samples."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from inpaint.export.adapter_folder import EMBEDS_FILES
from inpaint.export.grid import grid
from inpaint.models.adapter import Adapter, AdapterCard
from inpaint.models.base import BaseInfo
from inpaint.models.locate import TOYS

LICENCES = {
    "stable-diffusion-v1-5/stable-diffusion-inpainting": "CreativeML Open RAIL-M",
    "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": "CreativeML Open RAIL++-M",
    "stabilityai/stable-diffusion-xl-base-1.0": "CreativeML Open RAIL++-M",
    **dict.fromkeys(TOYS, "Apache-2.0"),
}
"""Of the bases that the presets name; an adapter is a derivative of its base."""


PAINTED = "\nWhite in `hole` is painted.\n"


def write_card(
    folder: Path, adapter: Adapter, info: BaseInfo, samples: Sequence[np.ndarray], *, text_alone: str | None = None
) -> None:
    """Write an adapter folder's `README.md`, and `samples.png` from strips (H W 3, uint8) of input, hole and result.

    Args:
        text_alone: of an adapter for pictures from text alone, a prompt; the samples are such pictures.
    """
    if samples:
        Image.fromarray(grid(samples, columns=2)).save(folder / "samples.png")
    text = _text(adapter, info, with_samples=bool(samples), text_alone=text_alone)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _text(adapter: Adapter, info: BaseInfo, *, with_samples: bool, text_alone: str | None) -> str:
    """The card as Markdown."""
    card = adapter.card
    family = "StableDiffusionXL" if info.is_xl else "StableDiffusion"
    example = text_alone or card.prompt("a red box", next(iter(card.tokens), None))
    pipeline = f"{family}Pipeline" if text_alone else f"{family}InpaintPipeline"
    arguments = f"{example!r}" if text_alone else f"{example!r}, image=photo, mask_image=hole"
    kind = "text-to-image" if text_alone else "inpainting"
    sides = card.resolution if isinstance(card.resolution, list) else [card.resolution]
    rows = {
        "base": card.base,
        "base revision": card.base_revision,
        "licence of the base": LICENCES.get(card.base, "see the base"),
        "resolution": f"{' x '.join(map(str, sides))} px{', height x width' if len(sides) > 1 else ''}",
        "samples trained on": card.samples,
        "manifest": card.manifest,
        **{name: f"{value:.4g}" for name, value in card.metrics.items()},
    }
    if card.tokens:
        rows["tokens"] = ", ".join(f"{category}: {token}" for category, token in card.tokens.items())
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    tags = f"lora, {kind}, textual-inversion" if adapter.embeds else f"lora, {kind}"
    title = f"Backgrounds for {', '.join(card.tokens)}" if adapter.embeds else f"A LoRA for {text_alone or kind}"
    shown = "pictures of its prompt" if text_alone else "input, hole, result"
    samples = f"\n![{shown}](samples.png)\n" if with_samples else ""
    return f"""---
base_model: {card.base}
library_name: diffusers
tags: [{tags}]
---
# {title}

A LoRA (rank {card.rank}) for {kind} on `{card.base}`{", with a token per category" if adapter.embeds else ""}.
{samples}
Prompts are written `{card.prompt_format}`, such as "{example}".

```python
from diffusers import {pipeline}
from safetensors.torch import load_file

pipe = {pipeline}.{_source(card)}
pipe.load_lora_weights("ADAPTER_FOLDER", use_safetensors=True)
{_tokens_snippet(len(adapter.embeds))}image = pipe({arguments}).images[0]
```

| | |
| --- | --- |
{table}
{"" if text_alone else PAINTED}"""


def _source(card: AdapterCard) -> str:
    """How diffusers loads the base: a toy base is a folder of this package, a hub id has a commit."""
    if card.base in TOYS:
        return f'from_pretrained("inpaint/toy/weights/{TOYS[card.base].name}")'
    if card.base.endswith(".safetensors"):
        return f'from_single_file("{card.base}")'
    is_hub_id = not card.base.startswith(("/", ".", "~"))
    return f'from_pretrained("{card.base}"' + (f', revision="{card.base_revision}")' if is_hub_id else ")")


def _tokens_snippet(encoders: int) -> str:
    """A token's vectors are given each with its name: `load_textual_inversion` of a file takes one token alone."""
    second = "token=token, text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2"
    return "".join(
        f'for token, vector in load_file("ADAPTER_FOLDER/{file}").items():\n'
        f"    pipe.load_textual_inversion(vector, {arguments})\n"
        for file, arguments in list(zip(EMBEDS_FILES, ("token=token", second), strict=True))[:encoders]
    )
