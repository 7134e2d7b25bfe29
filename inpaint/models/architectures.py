"""Real architectures with random weights, from their published configurations: for measuring speed and memory.

Nothing is downloaded and nothing is trained: the shapes, the parameter counts and so the cost are the real ones, the
pictures mean nothing. Configurations: the `config.json` files of stable-diffusion-v1-5/stable-diffusion-inpainting,
stabilityai/stable-diffusion-xl-base-1.0 and diffusers/stable-diffusion-xl-1.0-inpainting-0.1.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, SchedulerMixin, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from inpaint.errors import InpaintError
from inpaint.models.base import Base
from inpaint.models.info import info_of

CLIP_VOCABULARY = 49408
CLIP_WINDOW = 77
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One family member."""

    xl: bool
    """SDXL, else Stable Diffusion 1.5."""
    in_channels: int
    """Of the U-Net: 9 (latents, hole, masked image's latents) or 4 (latents alone)."""
    resolution: int
    """Side of its images in pixels."""


ARCHITECTURES = {
    "sd15-inpaint": Architecture(xl=False, in_channels=9, resolution=512),
    "sdxl": Architecture(xl=True, in_channels=4, resolution=1024),
    "sdxl-inpaint": Architecture(xl=True, in_channels=9, resolution=1024),
}
"""What `build_architecture` builds. The toy base's architecture, untrained, is `inpaint.toy.base`."""


def build_architecture(
    name: str, *, device: str | torch.device, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Base:
    """A base with random weights, made on `device` in `dtype`: no fp32 copy, none on the CPU.

    Args:
        device: `meta` gives the shapes alone, at once and without memory.

    Raises:
        InpaintError: an unknown name.
    """
    if name not in ARCHITECTURES:
        raise InpaintError(f"architecture {name!r}: give one of {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    device = torch.device(device)
    tokenizers = [clip_tokenizer() for _ in range(2 if architecture.xl else 1)]
    with _random_weights(device, dtype, seed):
        text_encoders: list[Any] = [clip_l()]
        if architecture.xl:
            text_encoders.append(open_clip_bigg())
        unet = sdxl_unet(architecture.in_channels) if architecture.xl else sd15_unet(architecture.in_channels)
        vae = build_vae(xl=architecture.xl)
    if architecture.xl and dtype == torch.float16:
        # As `load_base` does: SDXL's VAE overflows in fp16.
        vae.float()
    for module in (*text_encoders, vae, unet):
        module.eval()
    return Base(
        info=info_of(name, f"random-{seed}", unet=unet, text_encoders=text_encoders, vae_config=vae.config),
        tokenizers=tokenizers,
        text_encoders=text_encoders,
        vae=vae,
        unet=unet,
        scheduler=build_scheduler(xl=architecture.xl),
        zero_empty_negative=architecture.xl,
    )


@contextmanager
def _random_weights(device: torch.device, dtype: torch.dtype, seed: int) -> Iterator[None]:
    """Within, modules are made on `device` in `dtype`, with numbers drawn from `seed`."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def sd15_unet(in_channels: int) -> UNet2DConditionModel:
    """Stable Diffusion 1.5's U-Net: 859.5 M parameters with 4 channels."""
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        cross_attention_dim=768,
        # diffusers' name for what is here the number of heads.
        attention_head_dim=8,
    )


def sdxl_unet(in_channels: int) -> UNet2DConditionModel:
    """SDXL's U-Net: 2567.5 M parameters with 4 channels."""
    return UNet2DConditionModel(
        sample_size=128,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        layers_per_block=2,
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=1280 + 6 * 256,
    )


def clip_l() -> CLIPTextModel:
    """CLIP ViT-L/14's text encoder, 123.1 M parameters: SD 1.5's, and SDXL's first."""
    config = _text_config(width=768, layers=12, heads=12, activation="quick_gelu")
    return CLIPTextModel(config)


def open_clip_bigg() -> CLIPTextModelWithProjection:
    """OpenCLIP ViT-bigG/14's text encoder with its projection, 694.7 M parameters: SDXL's second."""
    config = _text_config(width=1280, layers=32, heads=20, activation="gelu")
    return CLIPTextModelWithProjection(config)


def _text_config(*, width: int, layers: int, heads: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=CLIP_VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=CLIP_WINDOW,
        hidden_act=activation,
        bos_token_id=CLIP_VOCABULARY - 2,
        eos_token_id=CLIP_VOCABULARY - 1,
        pad_token_id=CLIP_VOCABULARY - 1,
    )


def build_vae(*, xl: bool) -> AutoencoderKL:
    """The VAE of both families, 83.7 M parameters; SDXL's has another latent scale."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=1024 if xl else 512,
        scaling_factor=0.13025 if xl else 0.18215,
    )


def build_scheduler(*, xl: bool) -> SchedulerMixin:
    """1000 training timesteps, epsilon prediction; SDXL ships Euler, SD 1.5 inpainting DDIM."""
    if xl:
        return EulerDiscreteScheduler(**NOISE, timestep_spacing="leading")
    return DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False)


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer without files, with a vocabulary of the true size and layout: the 256 bytes, each also as a
    word's end, 48,894 merges, start, end. The merges are pairs of characters, so a word takes about half as many
    tokens as it has letters."""
    letters = sorted(ByteLevel.alphabet())
    single = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = list(islice(product(letters, single), CLIP_VOCABULARY - len(single) - 2))
    words = [*single, *(first + second for first, second in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_WINDOW)
