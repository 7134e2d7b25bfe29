"""Tiny pipelines with random weights in diffusers format: the architecture is real, the pictures mean nothing.

`tiny_sd_inpaint(folder)`, `tiny_sd(folder)`, `tiny_sdxl_inpaint(folder)` save one each and return the folder; the same
call gives the same weights. Images are 32 px, latents 16 x 16.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from inpaint.models.architectures import byte_pair_tokenizer
from inpaint.models.base import BaseInfo

SIZE = 32
WIDTH = 16
MERGES = [("w", "o"), ("wo", "o"), ("woo", "d</w>"), ("r", "e"), ("re", "d</w>"), ("t", "h"), ("th", "e</w>")]


def base_info(**changes: Any) -> BaseInfo:
    """Of a made-up base like `toy`."""
    values = {"name": "toy", "revision": "c" * 64, "in_channels": 9, "default_size": 64, "size_multiple": 8}
    values |= {"downsample": 4, "is_xl": False, "layers": {}, "text_widths": (96,), "guidance_scale": 1.0, "steps": 25}
    return BaseInfo(**{**values, **changes})


def tiny_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer without files: the 256 bytes, each also as a word's end, and a few merges."""
    return byte_pair_tokenizer(MERGES, max_length=77)


def tiny_text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
        scaling_factor=0.5,
    )


def tiny_unet(in_channels: int, **settings: Any) -> UNet2DConditionModel:
    settings = {"cross_attention_dim": WIDTH, "attention_head_dim": 2, **settings}
    return UNet2DConditionModel(
        in_channels=in_channels,
        out_channels=4,
        sample_size=SIZE // 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **settings,
    )


def tiny_scheduler(prediction_type: str = "epsilon") -> DDIMScheduler:
    """With the settings that Stable Diffusion's own schedulers have."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def _tiny_sd_parts(in_channels: int, tokenizer: CLIPTokenizer | None = None) -> dict[str, Any]:
    torch.manual_seed(0)
    tokenizer = tokenizer or tiny_tokenizer()
    return {
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(tiny_text_config(tokenizer)).eval(),
        "vae": tiny_vae().eval(),
        "unet": tiny_unet(in_channels).eval(),
        "scheduler": tiny_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def tiny_sd_inpaint(folder: Path) -> Path:
    """9 input channels, as stable-diffusion-inpainting."""
    StableDiffusionInpaintPipeline(**_tiny_sd_parts(9)).save_pretrained(folder)
    return folder


def tiny_sd(folder: Path, tokenizer: CLIPTokenizer | None = None) -> Path:
    """4 input channels, as stable-diffusion-v1-5. Args: tokenizer: instead of the tiny one."""
    StableDiffusionPipeline(**_tiny_sd_parts(4, tokenizer)).save_pretrained(folder)
    return folder


def tiny_sdxl_inpaint(folder: Path, in_channels: int = 9) -> Path:
    """Two text encoders, size conditioning; 9 input channels, or 4, as stable-diffusion-xl-base-1.0."""
    torch.manual_seed(1)
    tokenizer = tiny_tokenizer()
    config = tiny_text_config(tokenizer)
    unet = tiny_unet(
        in_channels,
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + WIDTH,
    )
    StableDiffusionXLInpaintPipeline(
        tokenizer=tokenizer,
        tokenizer_2=tiny_tokenizer(),
        text_encoder=CLIPTextModel(config).eval(),
        text_encoder_2=CLIPTextModelWithProjection(config).eval(),
        vae=tiny_vae().eval(),
        unet=unet.eval(),
        scheduler=tiny_scheduler(),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder
