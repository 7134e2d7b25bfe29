"""The untrained toy base: Stable Diffusion inpainting's parts and settings, small enough for one CPU core.

What diffusers and transformers do with a Stable Diffusion 1.5 inpainting folder they do with ours: 9 input channels
(noisy latents 4, hole 1, masked-image latents 4), epsilon prediction, the last hidden state of a CLIP text encoder.
Different: 64 px, latents at a quarter of the resolution, 32 tokens of a vocabulary of a few hundred: every byte is in
it, so that any text can be encoded, and its merges make each of WORDS one token.
"""

import copy
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from inpaint.models.architectures import byte_pair_tokenizer
from inpaint.models.folder import PREFERENCES_FILE
from inpaint.toy.catalogue import BACKGROUND_NAMES, CATEGORY_INIT_WORDS, COLOUR_NAMES, SHAPE_NAMES

TEXT_WIDTH = 96
MAX_TOKENS = 32
IMAGE_SIZE = 64
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


def build_tokenizer(folder: str | Path) -> CLIPTokenizer:
    """Write the tokenizer, CLIP's byte-level BPE, to `folder` and return it as loaded from there.

    As with Stable Diffusion 1.5: start, text, end; padded with the end token, which is the last of the vocabulary.
    """
    byte_pair_tokenizer(_learned_merges(WORDS), max_length=MAX_TOKENS).save_pretrained(str(folder))
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
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
        scaling_factor=1.0,  # until it is measured, after training
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Token ids B 32 to states B 32 TEXT_WIDTH; random weights."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=3 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_unet() -> UNet2DConditionModel:
    """Latents, hole and masked-image latents B 9 16 16, timesteps and text states to the noise B 4 16 16.

    No attention at 16 x 16: it would cost as much time as all the rest, and 8 x 8 says which texture goes where.
    """
    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 4,
        in_channels=9,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
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
    vae: AutoencoderKL | None = None,
    text_encoder: CLIPTextModel | None = None,
    unet: UNet2DConditionModel | None = None,
    seed: int = 0,
) -> Path:
    """Write a complete diffusers folder, weights fp16 safetensors; parts that are not given get random weights.

    `StableDiffusionInpaintPipeline.from_pretrained(folder, local_files_only=True)` loads it. The given modules stay
    as they are. A text encoder must have been built for `build_tokenizer`'s vocabulary.
    """
    folder = Path(folder)
    tokenizer = build_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "vae": vae or build_vae(),
            "text_encoder": text_encoder or build_text_encoder(tokenizer),
            "unet": unet or build_unet(),
        }
    pipeline = StableDiffusionInpaintPipeline(
        **{name: copy.deepcopy(part).half() for name, part in parts.items()},
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    for name in parts:
        config = folder / name / "config.json"
        settings = json.loads(config.read_text(encoding="utf-8"))
        settings.pop("_name_or_path", None)  # where the part was loaded from: a path of this machine
        if name == "text_encoder":
            # Transformers 5 loads the type that the config names, diffusers float32 whatever is stored: without this, a
            # plain `from_pretrained` mixes both and the first U-Net call fails.
            settings["dtype"] = "float32"
        config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / PREFERENCES_FILE).write_text(json.dumps(PREFERENCES) + "\n", encoding="utf-8")
    return folder
