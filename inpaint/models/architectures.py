"""Stable Diffusion's architectures from their published configurations, without files and without trained weights.

What a single-file checkpoint is read into, and what speed and memory are measured with: the shapes, the parameter
counts and so the cost are the real ones. Configurations: the `config.json` files of
stable-diffusion-v1-5/stable-diffusion-v1-5, stable-diffusion-v1-5/stable-diffusion-inpainting,
stabilityai/stable-diffusion-xl-base-1.0 and diffusers/stable-diffusion-xl-1.0-inpainting-0.1.
"""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, SchedulerMixin, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

CLIP_VOCABULARY = 49408
CLIP_WINDOW = 77


class Modules(NamedTuple):
    """What has weights in a base."""

    text_encoders: list[Any]
    """CLIPTextModel, and for SDXL also CLIPTextModelWithProjection."""
    vae: AutoencoderKL
    unet: UNet2DConditionModel


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One family member."""

    xl: bool
    """SDXL, else Stable Diffusion 1.5."""
    in_channels: int
    """Of the U-Net: 9 (latents, hole, masked image's latents) or 4 (latents alone)."""
    noise: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the scheduler that are not the architecture's usual ones."""

    @property
    def resolution(self) -> int:
        """Side of its images in pixels."""
        return 1024 if self.xl else 512

    @property
    def zero_empty_negative(self) -> bool:
        """As `Base.zero_empty_negative`."""
        return self.xl

    def tokenizers(self) -> list[CLIPTokenizer]:
        """One, for SDXL two, which differ in what they pad with."""
        return [clip_tokenizer(), clip_tokenizer(pad="!")] if self.xl else [clip_tokenizer()]

    def scheduler(self) -> SchedulerMixin:
        """1000 training timesteps, epsilon prediction; SDXL ships Euler, SD 1.5 DDIM."""
        usual = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
        if self.xl:
            return EulerDiscreteScheduler(**{**usual, "timestep_spacing": "leading", **self.noise})
        return DDIMScheduler(**{**usual, "clip_sample": False, "set_alpha_to_one": False, **self.noise})

    def preferences(self) -> dict[str, Any]:
        """Of guidance and steps it states none."""
        return {}

    def blank(self) -> Modules:
        """With random weights, in torch's default type and on its default device: on `meta` at once and for nothing."""
        if self.xl:
            return Modules([clip_l(), open_clip_bigg()], vae(xl=True), sdxl_unet(self.in_channels))
        return Modules([clip_l()], vae(xl=False), sd15_unet(self.in_channels))


ARCHITECTURES = {
    "sd15": Architecture(xl=False, in_channels=4),
    "sd15-inpaint": Architecture(xl=False, in_channels=9),
    "sdxl": Architecture(xl=True, in_channels=4),
    "sdxl-inpaint": Architecture(xl=True, in_channels=9),
}
"""By the names that `build_architecture` takes. The toy base's architecture, untrained, is `inpaint.toy.base`."""


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
    return CLIPTextModel(text_config(width=768, layers=12, heads=12, activation="quick_gelu"))


def open_clip_bigg() -> CLIPTextModelWithProjection:
    """OpenCLIP ViT-bigG/14's text encoder with its projection, 694.7 M parameters: SDXL's second."""
    return CLIPTextModelWithProjection(text_config(width=1280, layers=32, heads=20, activation="gelu"))


def text_config(*, width: int, layers: int, heads: int, activation: str) -> CLIPTextConfig:
    """Of a CLIP text encoder with the true vocabulary and window."""
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


def vae(*, xl: bool) -> AutoencoderKL:
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


def clip_tokenizer(*, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's tokenizer: the 256 bytes, each also as a word's end, 48,894 merges, start and end."""
    merges = _clip_merges()
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(first + second for first, second in merges)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=CLIP_WINDOW, pad_token=pad)


@cache
def _clip_merges() -> tuple[tuple[str, str], ...]:
    """From openai/CLIP's `bpe_simple_vocab_16e6.txt.gz`, those that its tokenizer uses (MIT licence, see NOTICE)."""
    text = gzip.decompress(files("inpaint.models").joinpath("clip_merges.txt.gz").read_bytes()).decode()
    pairs = (line.split(" ") for line in text.splitlines())
    return tuple((first, second) for first, second in pairs)
