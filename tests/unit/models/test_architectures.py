"""The architectures have the published sizes, and a base made of them takes the same way as a loaded one."""

import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig

from benchmarks.random_base import ARCHITECTURES, build_architecture
from inpaint.errors import InpaintError
from inpaint.models import architectures
from inpaint.models.lora import LoraSettings, inject_lora, lora_parameters
from inpaint.models.prompt_text import AS_WRITTEN, read_prompt, tokenize
from inpaint.models.prompts import add_tokens

SD15_UNET = 859_520_964
SDXL_UNET = 2_567_463_684
CLIP_L = 123_060_480
BIGG = 694_659_840
VAE = 83_653_863
VOCABULARY = 49408
INPAINT_CHANNELS = 5 * 320 * 9
"""Weights of the five more channels that the first convolution (3 x 3, to 320) of an inpainting U-Net takes in."""


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "unet", "text"),
    [
        ("sd15-inpaint", SD15_UNET + INPAINT_CHANNELS, [CLIP_L]),
        ("sdxl", SDXL_UNET, [CLIP_L, BIGG]),
        ("sdxl-inpaint", SDXL_UNET + INPAINT_CHANNELS, [CLIP_L, BIGG]),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, unet: int, text: list[int]) -> None:
    base = build_architecture(name, device="meta", dtype=torch.bfloat16)
    assert parameters(base.unet) == unet
    assert [parameters(encoder) for encoder in base.text_encoders] == text
    assert parameters(base.vae) == VAE
    assert base.info.in_channels == ARCHITECTURES[name].in_channels
    assert base.info.default_size == (1024 if base.info.is_xl else 512)
    modules = (base.unet, base.vae, *base.text_encoders)
    assert {p.device.type for module in modules for p in module.parameters()} == {"meta"}
    assert {p.dtype for module in modules for p in module.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def test_lora_of_the_sdxl_architecture() -> None:
    base = build_architecture("sdxl", device="meta", dtype=torch.bfloat16)
    inject_lora(base, LoraSettings(rank=4, text_encoder=False), seed=0)
    attention = {n: p for n, p in lora_parameters(base).items() if ".ff." not in n}
    assert sum(p.numel() for p in attention.values()) == 5_806_080, "as diffusers' SDXL LoRA of rank 4 has"


def test_the_tokenizer_has_the_true_vocabulary() -> None:
    tokenizer = architectures.clip_tokenizer()
    assert len(tokenizer) == VOCABULARY
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (49406, 49407)
    prompts = [read_prompt(prompt, AS_WRITTEN) for prompt in ("a red bottle", "on marble")]
    (ids_BL,) = tokenize([tokenizer], [prompts]).ids
    assert ids_BL.shape == (2, 77)
    assert ids_BL[0, 0] == 49406
    assert tokenizer.decode(ids_BL[0], skip_special_tokens=True).strip() == "a red bottle"
    # As in openai/CLIP's own notebook.
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.pad_token_id == 49407 and architectures.clip_tokenizer(pad="!").pad_token_id == 0


def test_weights_are_a_function_of_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small text encoder, U-Net and VAE in place of the real ones."""
    small = {"block_out_channels": (32, 32), "layers_per_block": 1}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = architectures.UNet2DConditionModel
    monkeypatch.setattr(
        architectures, "sd15_unet", lambda n: unet(sample_size=8, in_channels=n, mid_block_type=None, **small, **blocks)
    )
    text = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    monkeypatch.setattr(architectures, "clip_l", lambda: architectures.CLIPTextModel(text))
    monkeypatch.setattr(architectures, "vae", lambda *, is_xl: architectures.AutoencoderKL())
    state = torch.random.get_rng_state()
    first, again, other = (build_architecture("sd15-inpaint", device="cpu", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first.unet.conv_in.weight, again.unet.conv_in.weight)
    assert not torch.equal(first.unet.conv_in.weight, other.unet.conv_in.weight)
    add_tokens(first, {"CDP_COS": "product"})
    assert len(first.tokenizers[0]) == VOCABULARY + 1


def test_an_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(InpaintError, match="sd15-inpaint"):
        build_architecture("sd3", device="meta")
