"""The untrained toy bases are what diffusers expects of a Stable Diffusion and of an SDXL inpainting folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline
from safetensors import safe_open
from transformers import CLIPTokenizer

from inpaint.toy.base import (
    IMAGE_SIZES,
    MAX_TOKENS,
    WORDS,
    assemble,
    begin_with,
    build_scheduler,
    build_tokenizer,
    build_unet,
    build_vae,
    measured_scaling_factor,
)
from inpaint.toy.catalogue import render


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assemble(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assemble(tmp_path_factory.mktemp("xl"), architecture="sdxl")


def test_each_word_is_one_token(tokenizer: CLIPTokenizer) -> None:
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in WORDS]
    assert all(len(one) == 1 for one in ids)
    assert len({one[0] for one in ids}) == len(set(WORDS))


def test_the_tokenizer_survives_saving_and_loading(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(str(tmp_path))
    loaded = CLIPTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    for text in (
        "a red bottle on wood",
        "CDP_COS background, an orange bowl",
        "Zw\u00f6lf \u20ac, \u96ea \U0001f9f4!",
        "",
    ):
        assert loaded(text).input_ids == tokenizer(text).input_ids
        assert tokenizer.unk_token not in tokenizer.convert_ids_to_tokens(
            loaded(text, add_special_tokens=False).input_ids
        )
    assert loaded.decode(loaded("a red bottle on wood").input_ids, skip_special_tokens=True) == "a red bottle on wood"
    assert loaded.model_max_length == MAX_TOKENS and len(loaded) == len(tokenizer)


def test_padding_and_ends_are_stable_diffusions(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("a red jar", padding="max_length", truncation=True).input_ids
    assert len(ids) == MAX_TOKENS
    assert ids[0] == tokenizer.bos_token_id and set(ids[4:]) == {tokenizer.eos_token_id}
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert len(tokenizer("a red jar on wood " * 20, truncation=True).input_ids) == MAX_TOKENS


def test_a_category_becomes_a_new_token(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path)
    assert tokenizer.add_tokens(["CDP_COS"]) == 1
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("CDP_COS background, a red jar").input_ids)
    assert len(pieces) == 8 and "background</w>" in pieces


def test_the_folder_loads_in_diffusers_and_paints(folder: Path) -> None:
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(
        folder, local_files_only=True, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.config.in_channels == 9 and pipeline.vae_scale_factor == 4
    scene = render(0, 0)
    result = pipeline(
        prompt="a red bottle on wood",
        image=torch.from_numpy(scene.image).permute(2, 0, 1)[None] / 255,
        mask_image=torch.from_numpy(~scene.product)[None, None].float(),
        height=IMAGE_SIZES["sd15"],
        width=IMAGE_SIZES["sd15"],
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    )
    assert result.images.shape == (1, 64, 64, 3) and np.isfinite(result.images).all()


def test_the_xl_folder_loads_in_diffusers_and_paints(xl_folder: Path) -> None:
    pipeline = StableDiffusionXLInpaintPipeline.from_pretrained(xl_folder, local_files_only=True, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.config.in_channels == 9 and pipeline.unet.config.addition_embed_type == "text_time"
    widths = [encoder.config.hidden_size for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)]
    assert len(set(widths)) == 2 and sum(widths) == pipeline.unet.config.cross_attention_dim
    assert pipeline.tokenizer_2.pad_token == "!" and len(pipeline.tokenizer) == len(pipeline.tokenizer_2)
    hole = torch.zeros(1, 1, 128, 128)
    hole[..., 64:, 64:] = 1
    result = pipeline(
        prompt="four photos",
        image=torch.rand(1, 3, 128, 128),
        mask_image=hole,
        height=IMAGE_SIZES["sdxl"],
        width=IMAGE_SIZES["sdxl"],
        strength=1.0,
        num_inference_steps=2,
        guidance_scale=1.0,
        output_type="np",
    )
    assert result.images.shape == (1, 128, 128, 3) and np.isfinite(result.images).all()


def test_a_unet_begins_with_all_that_another_has_in_common() -> None:
    torch.manual_seed(0)
    other, unet = build_unet(), build_unet("sdxl")
    own = {name: value.clone() for name, value in unet.state_dict().items()}
    begun, known = begin_with(unet, other).state_dict(), other.state_dict()
    kept = {name for name, value in begun.items() if (value == own[name]).all() and own[name].std() > 0}
    assert kept and all(name.startswith("add_embedding") or ".attn2.to_" in name for name in kept)
    for name in ("conv_in.weight", "mid_block.attentions.0.proj_in.weight"):  # the latter was a convolution
        assert (begun[name].flatten() == known[name].flatten()).all()


@pytest.mark.parametrize("which", ["folder", "xl_folder"])
def test_the_folder_is_small_and_fp16_and_holds_no_pickle(which: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(which)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            assert {weights.get_tensor(name).dtype for name in weights.keys()} <= {torch.float16, torch.int64}  # noqa: SIM118


def test_random_weights_are_a_function_of_the_seed(folder: Path, tmp_path: Path) -> None:
    again = assemble(tmp_path)  # SDXL's are made in the same way
    for path in folder.rglob("*.safetensors"):
        assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes()


def test_the_noise_schedule_is_stable_diffusions() -> None:
    config = build_scheduler().config
    expected = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "epsilon",
    }
    expected |= {"num_train_timesteps": 1000, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    assert {key: config[key] for key in expected} == expected


def test_the_scaling_factor_gives_unit_variance() -> None:
    torch.manual_seed(0)
    vae = build_vae()
    images = torch.from_numpy(np.stack([render(0, i).image for i in range(8)])).permute(0, 3, 1, 2) / 127.5 - 1
    factor = measured_scaling_factor(vae, images)
    with torch.no_grad():
        assert float((vae.encode(images).latent_dist.mean * factor).std()) == pytest.approx(1, rel=1e-4)
