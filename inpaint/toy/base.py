"""The untrained toy bases: Stable Diffusion inpainting's parts and settings, small enough for one CPU core.

What diffusers and transformers do with a Stable Diffusion 1.5 inpainting folder they do with ours: 9 input channels
(noisy latents 4, hole 1, masked-image latents 4), epsilon prediction, the last hidden state of a CLIP text encoder; and
with an SDXL inpainting folder: a second text encoder of another width, its pooled text and the picture's sizes.
Different: 64 px (SDXL 128), latents at a quarter of the resolution, 32 tokens of a vocabulary of a few hundred: every
byte is in it, so that any text can be encoded, and its merges make each of WORDS one token.
"""

import copy
import json
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from inpaint.models.architectures import byte_pair_tokenizer
from inpaint.models.folder import PREFERENCES_FILE
from inpaint.toy.catalogue import BACKGROUND_NAMES, CATEGORY_INIT_WORDS, COLOUR_NAMES, SHAPE_NAMES

Architecture = Literal["sd15", "sdxl"]
IMAGE_SIZES: dict[Architecture, int] = {"sd15": 64, "sdxl": 128}
TEXT_WIDTH = 96
XL_TEXT_WIDTH = 64
"""Of SDXL's second encoder."""
XL_TIME_WIDTH = 32
"""Of each of the six numbers that tell SDXL the picture's sizes."""
MAX_TOKENS = 32
PREFERENCES = {"guidance_scale": 1.0, "steps": 25}
"""No guidance (docs/decisions.md)."""
WORDS: tuple[str, ...] = (
    *("a", "an", "on", "with", "the", "of", "and", "in", "background", "photo", "product"),
    *COLOUR_NAMES,
    *SHAPE_NAMES,
    *BACKGROUND_NAMES,
    *CATEGORY_INIT_WORDS.values(),
)
"""One token each. In the base's training captions only: a, an, on, and the names of the catalogue."""
XL_WORDS = (*WORDS, *("one", "four", "photos", "colour", "shape"))
"""As `WORDS`, of the SDXL base."""


def build_tokenizer(folder: str | Path, words: tuple[str, ...] = WORDS, *, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """Write the tokenizer, CLIP's byte-level BPE, to `folder` and return it as loaded from there.

    As with Stable Diffusion 1.5: start, text, end, which is the last of the vocabulary; padded with it unless `pad`
    says otherwise, as SDXL's second one does.
    """
    byte_pair_tokenizer(_learned_merges(words), max_length=MAX_TOKENS, pad=pad).save_pretrained(str(folder))
    return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)


def _learned_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte-pair merges (Sennrich et al. 2016, algorithm 1) until each word is one token; ties go to the first pair
    in alphabetical order. Encoding with these merges repeats the same steps, so it ends at the same one token."""
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in spelled for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in spelled:
            place = 0
            while place < len(word) - 1:
                if tuple(word[place : place + 2]) == best:
                    word[place : place + 2] = ["".join(best)]
                place += 1
    return merges


def build_vae() -> AutoencoderKL:
    """RGB in [-1, 1], B 3 H W, to 4 latent channels at a quarter of the resolution and back; random weights."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_SIZES["sd15"],
        mid_block_add_attention=False,
        scaling_factor=1.0,  # until it is measured, after training
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Token ids B 32 to states B 32 TEXT_WIDTH; random weights."""
    return CLIPTextModel(_text_config(tokenizer, TEXT_WIDTH))


def build_text_encoder_2(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """SDXL's second one: token ids B 32 to states B 32 XL_TEXT_WIDTH, pooled B XL_TEXT_WIDTH; random weights."""
    return CLIPTextModelWithProjection(_text_config(tokenizer, XL_TEXT_WIDTH))


def _text_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_unet(architecture: Architecture = "sd15") -> UNet2DConditionModel:
    """Latents, hole and masked-image latents B 9 16 16 (SDXL: 32 x 32), timesteps and what is known of the text and
    SDXL's sizes to the noise B 4 16 16; random weights.

    No attention at the latents' own resolution: it would cost as much time as all the rest, and half of it says which
    texture goes where, and what another panel shows.
    """
    told: dict[str, Any] = {"cross_attention_dim": TEXT_WIDTH}
    if architecture == "sdxl":
        told = {
            "cross_attention_dim": TEXT_WIDTH + XL_TEXT_WIDTH,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": XL_TIME_WIDTH,
            "projection_class_embeddings_input_dim": XL_TEXT_WIDTH + 6 * XL_TIME_WIDTH,
        }
    return UNet2DConditionModel(
        sample_size=IMAGE_SIZES[architecture] // 4,
        in_channels=9,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=16,
        **told,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.5's noise schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


@torch.no_grad()
def measured_scaling_factor(vae: AutoencoderKL, images: torch.Tensor) -> float:
    """One over the standard deviation of the latents of `images` (B 3 H W in [-1, 1]): they then have about unit
    variance, which the noise schedule supposes (Rombach et al. 2022, appendix G)."""
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(64)])
    return float(1 / latents.float().std())


def assemble(
    folder: str | Path,
    *,
    architecture: Architecture = "sd15",
    parts: Mapping[str, nn.Module] | None = None,
    seed: int = 0,
) -> Path:
    """Write a complete diffusers folder, weights fp16 safetensors; parts that are not given get random weights.

    `StableDiffusionInpaintPipeline.from_pretrained(folder, local_files_only=True)` loads it, for SDXL
    `StableDiffusionXLInpaintPipeline`. The given modules stay as they are. A text encoder must have been built for
    `build_tokenizer`'s vocabulary.

    Args:
        parts: `vae`, `text_encoder`, `unet`, SDXL's `text_encoder_2`.
    """
    folder = Path(folder)
    tokenizers, makers = _parts(folder, architecture)
    given = parts or {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = {name: given[name] if name in given else make() for name, make in makers.items()}
    halves = {name: copy.deepcopy(part).half() for name, part in made.items()}
    if architecture == "sdxl":
        pipeline = StableDiffusionXLInpaintPipeline(
            **halves, **tokenizers, scheduler=build_scheduler(), add_watermarker=False
        )
    else:
        pipeline = StableDiffusionInpaintPipeline(
            **halves,
            **tokenizers,
            scheduler=build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    for name in made:
        config = folder / name / "config.json"
        settings = json.loads(config.read_text(encoding="utf-8"))
        settings.pop("_name_or_path", None)  # where the part was loaded from: a path of this machine
        if name.startswith("text_encoder"):
            # Transformers 5 loads the type that the config names, diffusers float32 whatever is stored: without this, a
            # plain `from_pretrained` mixes both and the first U-Net call fails.
            settings["dtype"] = "float32"
        config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / PREFERENCES_FILE).write_text(json.dumps(PREFERENCES) + "\n", encoding="utf-8")
    return folder


def _parts(folder: Path, architecture: Architecture) -> tuple[dict[str, CLIPTokenizer], dict[str, Callable[[], Any]]]:
    """The tokenizers, written below `folder`, and how each part with weights is made."""
    words = XL_WORDS if architecture == "sdxl" else WORDS
    tokenizer = build_tokenizer(folder / "tokenizer", words)
    tokenizers, makers = (
        {"tokenizer": tokenizer},
        {"vae": build_vae, "text_encoder": lambda: build_text_encoder(tokenizer)},
    )
    if architecture == "sdxl":
        second = tokenizers["tokenizer_2"] = build_tokenizer(folder / "tokenizer_2", words, pad="!")
        makers["text_encoder_2"] = lambda: build_text_encoder_2(second)
    return tokenizers, {**makers, "unet": lambda: build_unet(architecture)}


def begin_with(unet: UNet2DConditionModel, other: UNet2DConditionModel) -> UNet2DConditionModel:
    """The U-Net with all weights of another that have the same name and size, in place; returns it."""
    known = other.state_dict()
    taken = {
        name: known[name].reshape(own.shape)  # a projection may be a convolution of one pixel there
        for name, own in unet.state_dict().items()
        if name in known and known[name].numel() == own.numel()
    }
    unet.load_state_dict(taken, strict=False)
    return unet
