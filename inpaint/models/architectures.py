"""Stable Diffusion's architectures from their published configurations: what a single-file checkpoint is read into.

Configurations: the `config.json` files of stable-diffusion-v1-5/stable-diffusion-v1-5,
stable-diffusion-v1-5/stable-diffusion-inpainting, stabilityai/stable-diffusion-xl-base-1.0 and
diffusers/stable-diffusion-xl-1.0-inpainting-0.1; what is not written here is the libraries' default.
"""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, SchedulerMixin, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from inpaint.models.layers import Modules


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One family member."""

    is_xl: bool
    """SDXL, else Stable Diffusion 1.5."""
    in_channels: int
    """Of the U-Net: 9 (latents, hole, masked image's latents) or 4 (latents alone)."""
    noise: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the scheduler that are not the architecture's usual ones."""

    @property
    def zero_empty_negative(self) -> bool:
        """As `Base.zero_empty_negative`."""
        return self.is_xl

    def preferences(self) -> dict[str, Any]:
        """Of guidance and steps none is stated."""
        return {}

    def tokenizers(self) -> list[CLIPTokenizer]:
        """One, for SDXL two, which differ in what they pad with."""
        return [clip_tokenizer(), clip_tokenizer(pad="!")] if self.is_xl else [clip_tokenizer()]

    def scheduler(self) -> SchedulerMixin:
        """1000 training timesteps, epsilon prediction; SDXL ships Euler, SD 1.5 DDIM."""
        usual = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
        if self.is_xl:
            return EulerDiscreteScheduler(**{**usual, "timestep_spacing": "leading", **self.noise})
        return DDIMScheduler(**{**usual, "clip_sample": False, "set_alpha_to_one": False, **self.noise})

    def blank(self) -> Modules:
        """With random weights, in torch's default type and on its default device: on `meta` at once and for nothing."""
        encoders: list[Any] = [clip_l(), open_clip_bigg()] if self.is_xl else [clip_l()]
        unet = sdxl_unet(self.in_channels) if self.is_xl else sd15_unet(self.in_channels)
        return Modules(text_encoders=encoders, vae=vae(is_xl=self.is_xl), unet=unet)


def sd15_unet(in_channels: int) -> UNet2DConditionModel:
    """Stable Diffusion 1.5's U-Net: 859.5 M parameters with 4 channels."""
    # attention_head_dim is diffusers' name for what is the number of heads here and below.
    return UNet2DConditionModel(sample_size=64, in_channels=in_channels, cross_attention_dim=768, attention_head_dim=8)


def sdxl_unet(in_channels: int) -> UNet2DConditionModel:
    """SDXL's U-Net: 2567.5 M parameters with 4 channels."""
    return UNet2DConditionModel(
        sample_size=128,
        in_channels=in_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
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
    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, projection_dim=768, num_attention_heads=12)
    return CLIPTextModel(config)


def open_clip_bigg() -> CLIPTextModelWithProjection:
    """OpenCLIP ViT-bigG/14's text encoder with its projection, 694.7 M parameters: SDXL's second."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=1280,
            intermediate_size=5120,
            projection_dim=1280,
            num_hidden_layers=32,
            num_attention_heads=20,
            hidden_act="gelu",
        )
    )


def vae(*, is_xl: bool) -> AutoencoderKL:
    """The VAE of both families, 83.7 M parameters; SDXL's has another latent scale."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=1024 if is_xl else 512,
        scaling_factor=0.13025 if is_xl else 0.18215,
    )


def clip_tokenizer(*, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's tokenizer; its 48,894 merges are those of openai/CLIP's `bpe_simple_vocab_16e6.txt.gz` that it uses (MIT
    licence, see NOTICE)."""
    lines = gzip.decompress(files("inpaint.models").joinpath("clip_merges.txt.gz").read_bytes()).decode().splitlines()
    merges = [(first, second) for first, second in (line.split(" ") for line in lines)]
    return byte_pair_tokenizer(merges, max_length=77, pad=pad)


def byte_pair_tokenizer(merges: list[tuple[str, str]], *, max_length: int, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """A tokenizer of CLIP's kind: the 256 bytes, each also as a word's end, what `merges` make, start and end."""
    letters = sorted(ByteLevel.alphabet())
    pieces = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)])
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length, pad_token=pad)
