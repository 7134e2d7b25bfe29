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
from inpaint.export.card import write_card
from inpaint.models.adapter import Adapter, AdapterCard, adapter_from, apply_adapter, check_adapter
from inpaint.models.base import Base, BaseInfo, load_base, read_base_info
from inpaint.models.lora import LoraSettings, inject_lora, lora_parameters
from inpaint.models.prompt_text import AS_WRITTEN, read_prompt, tokenize
from inpaint.models.prompts import add_tokens, encode_prompts, token_parameters
from inpaint.paint.painter import Painter
from inpaint.paint.request import PaintRequest
from tests.adapters import without_tokens
from tests.tiny import SIZE, tiny_sd_inpaint
from tests.unit.paint.examples import request_with

TOKENS = {"CDP_COS": "CDP_COS", "CDP_FOOD": "CDP_FOOD"}
PROMPT = "CDP_FOOD background, the red wood"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny_sd_inpaint(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def info(folder: Path) -> BaseInfo:
    return read_base_info(str(folder))


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


@pytest.mark.parametrize("kind", ["tokens", "plain"])
def test_plain_diffusers_paints_the_same_image_with_the_adapter(
    folder: Path, adapter_folder: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "plain":
        adapter_folder = save_adapter(tmp_path, without_tokens(load_adapter(adapter_folder)))
    base = load_base(folder)
    bare = Painter(base, device="cpu").paint_raw([request()])[0]
    apply_adapter(base, load_adapter(adapter_folder))
    ours = Painter(base, device="cpu").paint_raw([request()])[0]

    pipeline = StableDiffusionInpaintPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(adapter_folder, use_safetensors=True)
    embeds = adapter_folder / "learned_embeds.safetensors"
    assert embeds.is_file() == (kind == "tokens")
    for token, vector in (load_file(embeds) if embeds.is_file() else {}).items():
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
    prompts = [read_prompt(prompt, AS_WRITTEN) for prompt in ("CDP_FOOD background", "CDP_FOO background")]
    (ids,) = tokenize(base.tokenizers, [prompts]).ids
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
        with pytest.raises(InpaintError, match=r"lists .*; only pytorch_lora_weights"):
            load_adapter(copy)


def without(adapter: Adapter, end: str) -> dict[str, torch.Tensor]:
    name = next(name for name in adapter.lora if name.endswith(end))
    return {n: t for n, t in adapter.lora.items() if n != name}


def test_what_does_not_belong_to_the_base_is_refused_by_name(info: BaseInfo, adapter_folder: Path) -> None:
    adapter = load_adapter(adapter_folder)
    first = next(name for name in adapter.lora if name.endswith("lora_A.weight"))
    vector = adapter.embeds[0]["CDP_COS"]
    stray = "unet.down_blocks.9.to_q.lora_A.weight"

    def card(**changes: object) -> Adapter:
        return replace(adapter, card=replace(adapter.card, **changes))

    def lora(**changes: torch.Tensor) -> Adapter:
        return replace(adapter, lora={**adapter.lora, **changes})

    for wrong, words in [
        (card(base_revision="0" * 64), "was trained on base .* at 000000000000, this is"),
        (card(rank=2), "expected"),
        (card(rank="3"), "rank 3: give a whole number"),
        (card(rank=True), "rank True"),
        (card(alpha=float("nan")), "alpha nan"),
        (card(alpha=0.0), "alpha 0"),
        (card(tokens=["CDP_COS"]), "tokens .*give category -> token"),
        (card(tokens={"CDP_COS": 3}), "tokens"),
        (card(tokens={"a/b": "CDP_COS"}), "'a/b': give it a name"),
        (card(tokens={"CDP_COS": "CDP_COS"}), "the card lists the tokens"),
        (card(tokens={**TOKENS, "CDP_NEW": "CDP_NEW"}), "the card lists the tokens"),
        (card(prompt_format="{token.__class__}"), "prompt_format .*give only {category}, {prompt}, {token}"),
        (card(prompt_format="{prompt!r}"), "prompt_format"),
        (card(prompt_format="{"), "prompt_format"),
        (card(dataset={"6_bag": {"n_repeats": 6}}), "dataset .*give folder -> n_repeats, img_count, tags"),
        (card(prompt_format=None), "prompt_format"),
        (replace(without_tokens(adapter), card=replace(adapter.card, tokens={})), "give only {prompt}"),
        (lora(**{stray: adapter.lora[first]}), f"{stray}: base .* has no such layer"),
        (lora(**{first: adapter.lora[first][:, 1:]}), "expected"),
        (lora(**{first: adapter.lora[first] / 0}), f"{first} is not finite"),
        (replace(adapter, lora=without(adapter, "lora_A.weight")), "other half .*lora_A.weight is missing"),
        (replace(adapter, lora=without(adapter, "lora_B.weight")), "other half .*lora_B.weight is missing"),
        (replace(adapter, lora={}), "has no LoRA layer"),
        (replace(adapter, embeds=adapter.embeds * 2), "embeddings for 2 text encoders, base .* has 1"),
        (replace(adapter, embeds=({**adapter.embeds[0], "CDP_COS": vector[1:]},)), r"CDP_COS is \(15,\), expected"),
        (replace(adapter, embeds=({**adapter.embeds[0], "CDP_COS_2": vector},)), "embeddings of"),
    ]:
        with pytest.raises(InpaintError, match=words):
            check_adapter(wrong, info)
    check_adapter(adapter, info, max_rank=3)
    with pytest.raises(InpaintError, match="rank 3: up to 2"):
        check_adapter(adapter, info, max_rank=2)
    check_adapter(replace(adapter, embeds=({**adapter.embeds[0], "CDP_COS_1": vector},)), info)


def test_an_adapter_of_some_layers_is_applied_to_those_alone(folder: Path, adapter_folder: Path) -> None:
    adapter = load_adapter(adapter_folder)
    some = {n: t for n, t in adapter.lora.items() if "attn1.to_q" in n}
    base = load_base(folder)
    apply_adapter(base, replace(adapter, lora=some))
    assert lora_parameters(base).keys() == some.keys()


def test_an_adapter_is_read_from_a_url(adapter_folder: Path) -> None:
    near, far = load_adapter(adapter_folder), load_adapter(adapter_folder.as_uri())
    assert far.card == near.card
    assert all(torch.equal(far.lora[name], tensor) for name, tensor in near.lora.items())
    with pytest.raises(InpaintError, match=r"no adapter\.json"):
        load_adapter(f"{adapter_folder.as_uri()}/elsewhere")


def test_the_model_card_shows_what_plain_diffusers_needs(info: BaseInfo, adapter_folder: Path, tmp_path: Path) -> None:
    with_tokens = load_adapter(adapter_folder)
    plain = without_tokens(with_tokens)
    quoting = replace(plain, card=replace(plain.card, prompt_format='a "styled" {prompt}'))
    for adapter in (with_tokens, plain, quoting):
        folder = save_adapter(tmp_path / str(len(adapter.embeds)), adapter)
        write_card(folder, adapter, info, [np.zeros((4, 12, 3), dtype=np.uint8)] * 3)
        text = (folder / "README.md").read_text()
        snippet = text.split("```")[1].removeprefix("python")
        compile(snippet, "README.md", "exec")
        assert "StableDiffusionInpaintPipeline.from_pretrained" in snippet and "samples.png" in text
        assert ("load_textual_inversion" in snippet) == bool(adapter.embeds)
        assert ("CDP_COS background, a red box" in snippet) == bool(adapter.card.tokens)


def test_prompts_are_written_as_in_training(adapter_folder: Path) -> None:
    card = load_adapter(adapter_folder).card
    assert card.prompt("a box", "CDP_COS") == "CDP_COS background, a box"
    assert card.prompt("CDP_COS, a box") == "CDP_COS, a box"
    with pytest.raises(InpaintError, match="CDP_COS, CDP_FOOD"):
        card.prompt("a box", "CDP_TOYS")
    plain = replace(card, tokens={}, prompt_format="{prompt}")
    assert plain.prompt("a {box}") == plain.prompt("a {box}", "CDP_TOYS") == "a {box}"
    assert replace(plain, prompt_format="mystyle, {prompt}").prompt("a box") == "mystyle, a box"
