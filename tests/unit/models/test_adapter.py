"""Adapters: what diffusers makes of them, what is refused, and what is trained of a base."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image
from safetensors.torch import load_file

from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import load_adapter, save_adapter
from inpaint.models.adapter import AdapterCard, adapter_from, apply_adapter
from inpaint.models.base import Base, load_base
from inpaint.models.lora import LoraSettings, inject_lora, lora_parameters
from inpaint.models.prompts import encode_prompts, tokenize
from inpaint.models.tokens import add_tokens, token_parameters
from inpaint.paint.painter import Painter
from inpaint.paint.request import PaintRequest
from tests.tiny import SIZE, tiny_sd_inpaint
from tests.unit.paint.examples import request_with

TOKENS = {"CDP_COS": "CDP_COS", "CDP_FOOD": "CDP_FOOD"}
PROMPT = "CDP_FOOD background, the red wood"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny_sd_inpaint(tmp_path_factory.mktemp("base")))


def trained(base: Base, *, rank: int = 3, alpha: float = 5.0) -> dict[str, torch.Tensor]:
    """LoRA and tokens with large random values, so that what is dropped is seen."""
    inject_lora(base, LoraSettings(rank=rank, alpha=alpha), seed=1)
    add_tokens(base, dict.fromkeys(TOKENS.values(), "wood"))
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for name, parameter in {**lora_parameters(base), **token_parameters(base)}.items():
        tensors[name] = torch.randn(parameter.shape, generator=generator) * 0.3
    return tensors


@pytest.fixture(scope="module")
def adapter_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = load_base(folder)
    card = AdapterCard(
        base=str(folder),
        base_revision=base.info.revision,
        tokens=TOKENS,
        prompt_format="{token} background, {prompt}",
        resolution=SIZE,
        rank=3,
        alpha=5.0,
        samples=10,
        manifest="m",
    )
    return save_adapter(tmp_path_factory.mktemp("adapter"), adapter_from(trained(base), card))


def request() -> PaintRequest:
    rng = np.random.default_rng(0)
    hole = np.zeros((SIZE, SIZE), dtype=bool)
    hole[4:28, 6:30] = True
    image = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return request_with(image=image, hole=hole, prompt=PROMPT, seed=5, steps=4, guidance_scale=4.0)


def test_plain_diffusers_paints_the_same_image_with_the_adapter(folder: Path, adapter_folder: Path) -> None:
    base = load_base(folder)
    bare = Painter(base, device="cpu").paint_raw([request()])[0]
    apply_adapter(base, load_adapter(adapter_folder))
    ours = Painter(base, device="cpu").paint_raw([request()])[0]

    pipeline = StableDiffusionInpaintPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(adapter_folder, use_safetensors=True)
    for token, vector in load_file(adapter_folder / "learned_embeds.safetensors").items():
        pipeline.load_textual_inversion(vector, token=token)
    asked = request()
    theirs = pipeline(
        asked.prompt,
        image=Image.fromarray(asked.image),
        mask_image=Image.fromarray(asked.hole.astype(np.uint8) * 255),
        height=SIZE,
        width=SIZE,
        num_inference_steps=asked.sampling.steps,
        guidance_scale=asked.sampling.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(asked.seed),
        output_type="np",
    ).images[0]

    assert np.abs(ours - theirs).max() <= 1e-3
    assert np.abs(ours - bare).max() > 0.05, "the adapter changes nothing, so equality says nothing"


def test_only_lora_and_the_new_rows_are_trained(folder: Path) -> None:
    base = load_base(folder)
    inject_lora(base, LoraSettings(rank=2), seed=0)
    add_tokens(base, {"CDP_COS": "wood"})
    expected = {*lora_parameters(base).values(), *token_parameters(base).values()}
    models = [base.unet, base.vae, *base.text_encoders]
    assert {p for model in models for p in model.parameters() if p.requires_grad} == expected
    assert all(p.dtype == torch.float32 for p in expected)


def test_a_new_token_starts_at_its_words_and_leaves_other_prompts_alone(folder: Path) -> None:
    base = load_base(folder)
    before = encode_prompts(base, ["the red wood"]).embeds_BLD
    word = encode_prompts(base, ["wood"]).embeds_BLD
    add_tokens(base, {"CDP_COS": "wood"})
    assert torch.equal(encode_prompts(base, ["the red wood"]).embeds_BLD, before)
    assert torch.allclose(encode_prompts(base, ["CDP_COS"]).embeds_BLD, word, atol=1e-6)


def test_a_category_is_one_token_beside_others_that_begin_alike(folder: Path) -> None:
    base = load_base(folder)
    words = len(base.tokenizers[0])
    add_tokens(base, {"CDP_FOO": "red", "CDP_FOOD": "wood"})
    ids = tokenize(base.tokenizers[0], ["CDP_FOOD background", "CDP_FOO background"])
    assert ids[0, 1] == words + 1
    assert ids[1, 1] == words


def test_equal_seeds_give_equal_layers(folder: Path) -> None:
    layers = []
    for seed in (3, 3, 4):
        base = load_base(folder)
        inject_lora(base, LoraSettings(rank=2), seed=seed)
        layers.append({name: p.detach() for name, p in lora_parameters(base).items()})
    assert all(torch.equal(layers[0][name], layers[1][name]) for name in layers[0])
    assert not all(torch.equal(layers[0][name], layers[2][name]) for name in layers[0])


@pytest.fixture
def copy(adapter_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter_folder, tmp_path / "copy"))


def test_a_changed_byte_is_refused(copy: Path) -> None:
    path = copy / "pytorch_lora_weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InpaintError, match="do not match the sha256"):
        load_adapter(copy)


def test_a_missing_file_is_refused(copy: Path) -> None:
    (copy / "learned_embeds.safetensors").unlink()
    with pytest.raises(InpaintError, match=r"learned_embeds\.safetensors is missing"):
        load_adapter(copy)


def test_a_card_that_names_another_kind_of_file_or_place_is_refused(copy: Path) -> None:
    card = json.loads((copy / "adapter.json").read_text())
    for name in ("weights.bin", "../pytorch_lora_weights.safetensors"):
        (copy / "adapter.json").write_text(json.dumps({**card, "files": {name: "0" * 64}}))
        with pytest.raises(InpaintError, match="only safetensors files"):
            load_adapter(copy)


def test_numbers_that_are_not_finite_are_refused(folder: Path, adapter_folder: Path) -> None:
    adapter = load_adapter(adapter_folder)
    name = next(iter(adapter.lora))
    adapter.lora[name][0, 0] = float("nan")
    with pytest.raises(InpaintError, match=f"{name} is not finite"):
        apply_adapter(load_base(folder), adapter)


def test_another_base_is_refused(folder: Path, adapter_folder: Path) -> None:
    adapter = load_adapter(adapter_folder)
    other = replace(adapter, card=replace(adapter.card, base_revision="0" * 64))
    with pytest.raises(InpaintError, match="trained on base"):
        apply_adapter(load_base(folder), other)


def test_an_unknown_category_is_refused_with_those_it_knows(adapter_folder: Path) -> None:
    with pytest.raises(InpaintError, match="CDP_COS, CDP_FOOD"):
        load_adapter(adapter_folder).card.prompt("a box", "CDP_TOYS")
